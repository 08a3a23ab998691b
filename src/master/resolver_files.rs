//! The machine's own files about names, resolv.conf and the hosts file: when they change while the master runs, the
//! workers go by what they say then. Part of the master's loop.
//!
//! Workers open no files, so the master looks for them. It does so only where names are looked up at all, by their
//! status every few seconds; they are read when that has changed and then stayed the same for a look, so that nothing
//! half written is taken. One that is there and cannot be read is tried again until it can. The configuration file itself
//! is not read: that takes a reload.

use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipc::snapshot::{Dns, Mode, Snapshot};
use log::{info, warn};

use super::{Course, Master};
use crate::config;

/// How often they are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// By which a file that has changed is known: where it is, how long, and since when.
type Stamp = Option<(u64, u64, i64, i64, i64)>;

/// See the module's description.
#[derive(Debug)]
pub(super) struct ResolverFiles {
    look_at: Instant,
    /// As they were when they were last read; `None` = it is not known which of their contents were.
    read: Option<[Stamp; 2]>,
    /// As they were when they were last looked at.
    seen: [Stamp; 2],
    /// One of them could not be read the last time, though it was there; that has been said.
    unreadable: bool,
}

impl ResolverFiles {
    pub(super) fn new(now: Instant) -> ResolverFiles {
        ResolverFiles { look_at: now + LOOK, read: None, seen: [None; 2], unreadable: false }
    }

    /// The configuration has been read, and these files with it, a moment ago.
    pub(super) fn doubt(&mut self) {
        self.read = None;
    }

    /// Whether they are to be read: they have changed, and are not changing. `stamps` are as they are now.
    fn note(&mut self, stamps: [Stamp; 2]) -> bool {
        let settled = std::mem::replace(&mut self.seen, stamps) == stamps;
        let is_due = settled && self.read != Some(stamps);
        if is_due {
            self.read = Some(stamps);
        }
        is_due
    }

    /// They have been read, and why that failed where it did. A file that is there is tried again at each look, until
    /// it can be read: that its contents are not known may be for want of a descriptor, and it need not change again.
    fn tried(&mut self, failed: &[(&PathBuf, &io::Error)]) {
        let there = failed.iter().find(|(_, error)| error.kind() != io::ErrorKind::NotFound);
        if let Some((path, error)) = there {
            self.doubt();
            if !self.unreadable {
                warn!(
                    "cannot read {}: {error}; names are looked up by what it said before, trying again",
                    path.display()
                );
            }
        }
        self.unreadable = there.is_some();
    }
}

/// Whether anything is looked up by name.
fn uses_names(snapshot: &Snapshot) -> bool {
    snapshot.groups.iter().any(|group| !group.names.is_empty())
        || snapshot.listeners.iter().any(|listener| listener.mode == Mode::Forward)
}

fn stamp(path: Option<&PathBuf>) -> Stamp {
    let stat = rustix::fs::stat(path?).ok()?;
    Some((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)))
}

impl Master {
    /// When these files are looked at next.
    pub(super) fn resolver_look(&self) -> Option<Instant> {
        let watched = self.course == Course::Running && uses_names(&self.config.snapshot);
        watched.then_some(self.resolver_files.look_at)
    }

    /// Looks at them, and has the workers go by what they say when that has changed.
    pub(super) fn watch_resolver_files(&mut self, now: Instant) {
        if self.resolver_look().is_none_or(|at| at > now) {
            return;
        }
        self.resolver_files.look_at = now + LOOK;
        let sources = &self.config.process.resolver;
        let paths = [sources.resolv_conf.as_ref(), sources.hosts.as_ref()];
        if !self.resolver_files.note(paths.map(stamp)) {
            return;
        }
        let former = &self.config.snapshot.dns;
        let [resolv_conf, hosts] = paths.map(|path| path.map(|path| config::read_system_file(path)).transpose());
        let failed = [(paths[0], resolv_conf.as_ref().err()), (paths[1], hosts.as_ref().err())];
        let failed: Vec<_> = failed.into_iter().filter_map(|(path, error)| path.zip(error)).collect();
        self.resolver_files.tried(&failed);
        // One that cannot be read says nothing new: it may be about to be replaced.
        let text = |read: &io::Result<Option<String>>| read.as_ref().ok().and_then(Clone::clone);
        let (mut dns, _) = sources.settings(text(&resolv_conf).as_deref(), text(&hosts).as_deref());
        if resolv_conf.is_err() {
            dns = Dns { hosts: dns.hosts, ..former.clone() };
        }
        if hosts.is_err() {
            dns.hosts.clone_from(&former.hosts);
        }
        if dns == *former {
            return;
        }
        let mut snapshot = self.config.snapshot.clone();
        snapshot.dns = dns;
        snapshot.generation += 1;
        match ipc::sealed::write(&snapshot) {
            Ok(sealed) => {
                info!("resolv.conf or the hosts file has changed: names are looked up by what they say now");
                (self.config.snapshot, self.sealed) = (snapshot, Rc::new(sealed));
                self.hand_out();
            }
            Err(failed) => {
                warn!("cannot hand out what resolv.conf or the hosts file say now: {failed}; trying again");
                self.resolver_files.doubt();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_read_once_they_have_changed_and_stayed_so() {
        let stamp = |n| [Some((1, 2, n, 0, 0)), None];
        let mut files = ResolverFiles::new(Instant::now());
        let looks: Vec<bool> = [1, 1, 1, 2, 3, 3, 3, 1, 1].map(|n| files.note(stamp(n))).to_vec();
        assert_eq!(looks, [false, true, false, false, false, true, false, false, true]);
        files.doubt();
        assert!(files.note(stamp(1)));
    }

    #[test]
    fn what_could_not_be_read_is_tried_again_unless_it_is_not_there() {
        let stamps = [Some((1, 2, 3, 0, 0)), None];
        let path = PathBuf::from("/etc/hosts");
        let mut files = ResolverFiles::new(Instant::now());
        assert_eq!([files.note(stamps), files.note(stamps)], [false, true]);
        for error in [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE, rustix::io::Errno::ACCESS] {
            files.tried(&[(&path, &error.into())]);
            assert!(files.unreadable && files.note(stamps), "{error}");
        }
        files.tried(&[(&path, &io::ErrorKind::NotFound.into())]);
        assert!(!files.unreadable && !files.note(stamps));
    }
}
