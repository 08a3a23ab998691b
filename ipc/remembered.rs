//! What the names of servers stood for, in a file that one master leaves for the next: should no name server answer
//! when that starts, it begins with the last good answers.
//!
//! It is written anew as a whole, under another name first, so nobody reads half of it. What is read may be of another
//! version, or anything: then it is as good as nothing. Of files that others could have written nothing is read.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::message::MAX_ENDPOINTS;
use crate::snapshot::{Endpoint, Target};

/// The form of the file.
const VERSION: u16 = 1;
/// The longest file that is read, in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// A name with its last good answer.
pub type Remembered = (Target, Vec<Endpoint>);

#[derive(Debug, Serialize, Deserialize)]
struct Memory {
    version: u16,
    names: Vec<Remembered>,
}

/// Where it is for the master with this control socket.
#[must_use]
pub fn path(control: &Path) -> PathBuf {
    let mut path = control.as_os_str().to_owned();
    path.push(".names");
    path.into()
}

/// The control socket that a file is for; `None` when it is no such file.
#[must_use]
pub fn control(path: &Path) -> Option<PathBuf> {
    (path.extension()? == "names").then(|| path.with_extension(""))
}

/// Leaves these at `path`; without any, nothing.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, names: &[Remembered]) -> io::Result<()> {
    if names.is_empty() {
        return match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        };
    }
    let memory = Memory { version: VERSION, names: names.to_vec() };
    let bytes = postcard::to_stdvec(&memory).map_err(io::Error::other)?;
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    // In a directory where others can write, whatever is there may be theirs.
    let _ = std::fs::remove_file(&new);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = std::fs::File::from(rustix::fs::open(&new, flags, Mode::RUSR | Mode::WUSR)?);
    let written = file.write_all(&bytes).and_then(|()| std::fs::rename(&new, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    written
}

/// What was left at `path`; nothing when it cannot be used.
#[must_use]
pub fn read(path: &Path) -> Vec<Remembered> {
    let mut names = try_read(path).unwrap_or_default();
    for (_, endpoints) in &mut names {
        endpoints.truncate(MAX_ENDPOINTS);
    }
    names
}

fn try_read(path: &Path) -> Option<Vec<Remembered>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&fd).ok()?;
    let is_ours = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && stat.st_uid == rustix::process::geteuid().as_raw()
        && stat.st_mode & 0o022 == 0;
    if !is_ours || u64::try_from(stat.st_size).ok()? > MAX_BYTES {
        return None;
    }
    let mut bytes = Vec::new();
    std::fs::File::from(fd).take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    let memory: Memory = postcard::from_bytes(&bytes).ok()?;
    (memory.version == VERSION).then_some(memory.names)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn names() -> Vec<Remembered> {
        let endpoint = Endpoint { address: "[::1]:80".parse().unwrap(), weight: Some(3), backup: true };
        vec![(Target::Host { name: "app.test".to_owned(), port: 80 }, vec![endpoint])]
    }

    /// A path in a directory of the test's own, which ends with it.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Place {
            let directory = std::env::temp_dir().join(format!("remembered-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&directory).unwrap();
            Place(directory)
        }

        fn file(&self) -> PathBuf {
            path(&self.0.join("x.sock"))
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_is_left_is_found_and_nothing_of_it_remains() {
        let place = Place::new("found");
        let file = place.file();
        assert_eq!(control(&file), Some(place.0.join("x.sock")));
        assert_eq!(control(&place.0.join("x.sock")), None);
        assert_eq!(read(&file), []);
        write(&file, &names()).unwrap();
        write(&file, &names()).unwrap();
        assert_eq!(read(&file), names());
        assert_eq!(std::fs::read_dir(&place.0).unwrap().count(), 1);
        write(&file, &[]).unwrap();
        write(&file, &[]).unwrap();
        assert_eq!(std::fs::read_dir(&place.0).unwrap().count(), 0);
    }

    #[test]
    fn what_others_could_have_written_is_not_read() {
        let place = Place::new("others");
        let file = place.file();
        write(&file, &names()).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o620)).unwrap();
        assert_eq!(read(&file), []);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read(&file), names());
        let link = path(&place.0.join("y.sock"));
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(read(&link), []);
        assert_eq!(read(&place.0), []);
    }

    #[test]
    fn anything_else_is_nothing() {
        let place = Place::new("garbage");
        let file = place.file();
        let good = postcard::to_stdvec(&Memory { version: VERSION, names: names() }).unwrap();
        let other = postcard::to_stdvec(&Memory { version: VERSION + 1, names: names() }).unwrap();
        for bytes in [&b""[..], b"\xff\xff\xff", &good[..good.len() - 1], &other] {
            write(&file, &names()).unwrap();
            std::fs::write(&file, bytes).unwrap();
            assert_eq!(read(&file), []);
        }
    }
}
