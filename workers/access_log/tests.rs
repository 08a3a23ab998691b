use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use ipc::snapshot::Mode;
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use super::*;

fn entry() -> Entry<'static> {
    Entry {
        client: Some(([192, 0, 2, 7], 51234).into()),
        method: Some(b"GET"),
        target: Some(b"/a?b"),
        version: Some(b"HTTP/1.1"),
        host: Some(b"www.example.com"),
        referer: Some(b"https://example.com/"),
        user_agent: Some(b"curl/8.5.0"),
        status: Some(200),
        bytes_out: 1234,
        backend: Some("127.0.0.1:9001"),
        connect_us: Some(153),
        first_byte_us: Some(2210),
        total_us: Some(2390),
        ..Entry::new(Mode::Http, 1_795_156_532_123, 2)
    }
}

fn line_of(entry: &Entry<'_>, format: LogFormat) -> String {
    let mut out = Vec::new();
    line::append(&mut out, entry, format, &mut DateCache::new());
    assert!(out.len() <= MAX_LINE_BYTES);
    let line = String::from_utf8(out).unwrap();
    line.strip_suffix('\n').unwrap().to_owned()
}

fn memory_file() -> File {
    memfd_create("log", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap().into()
}

/// Another open file of the same memory, opened as the master opens the log.
fn appending(file: &File) -> OwnedFd {
    OpenOptions::new().append(true).open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap().into()
}

fn contents(mut file: &File) -> String {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

/// What lies in a pipe or socket now.
fn available(mut reader: &File) -> String {
    let mut text = vec![0; 1 << 20];
    let mut len = 0;
    loop {
        match reader.read(&mut text[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    text.truncate(len);
    String::from_utf8(text).unwrap()
}

/// A pipe whose writing end waits when it is full, as standard output does; the reading end does not wait.
fn pipe_of(bytes: usize) -> (File, OwnedFd) {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    fcntl_setpipe_size(&writer, bytes).unwrap();
    rustix::io::ioctl_fionbio(&reader, true).unwrap();
    (reader.into(), writer)
}

#[test]
fn a_combined_line_is_as_documented() {
    assert_eq!(
        line_of(&entry(), LogFormat::Combined),
        "192.0.2.7 - - [20/Nov/2026:06:35:32 +0000] \"GET /a?b HTTP/1.1\" 200 1234 \"https://example.com/\" \
         \"curl/8.5.0\" host=\"www.example.com\" mode=http backend=\"127.0.0.1:9001\" worker=2 port=51234 \
         connect_us=153 first_byte_us=2210 total_us=2390 bytes_in=0 retries=0 reason=\"-\""
    );
    assert_eq!(
        line_of(&Entry { reason: Some("peer closed"), ..Entry::new(Mode::Tcp, 0, 0) }, LogFormat::Combined),
        "- - - [01/Jan/1970:00:00:00 +0000] \"-\" - 0 \"-\" \"-\" host=\"-\" mode=tcp backend=\"-\" worker=0 port=- \
         connect_us=- first_byte_us=- total_us=- bytes_in=0 retries=0 reason=\"peer closed\""
    );
}

#[test]
fn a_json_line_is_one_object() {
    assert_eq!(
        line_of(&entry(), LogFormat::Json),
        "{\"time\":\"2026-11-20T06:35:32.123Z\",\"client\":\"192.0.2.7\",\"port\":51234,\"mode\":\"http\",\
         \"method\":\"GET\",\"target\":\"/a?b\",\"version\":\"HTTP/1.1\",\"host\":\"www.example.com\",\"status\":200,\
         \"bytes_out\":1234,\"bytes_in\":0,\"referer\":\"https://example.com/\",\"user_agent\":\"curl/8.5.0\",\
         \"backend\":\"127.0.0.1:9001\",\"worker\":2,\"connect_us\":153,\"first_byte_us\":2210,\"total_us\":2390,\
         \"retries\":0,\"reason\":null}"
    );
    assert_eq!(
        line_of(&Entry::new(Mode::Tcp, 0, 0), LogFormat::Json),
        "{\"time\":\"1970-01-01T00:00:00.000Z\",\"client\":null,\"port\":null,\"mode\":\"tcp\",\"method\":null,\
         \"target\":null,\"version\":null,\"host\":null,\"status\":null,\"bytes_out\":0,\"bytes_in\":0,\
         \"referer\":null,\"user_agent\":null,\"backend\":null,\"worker\":0,\"connect_us\":null,\
         \"first_byte_us\":null,\"total_us\":null,\"retries\":0,\"reason\":null}"
    );
}

#[test]
fn no_request_can_forge_a_line_or_a_field() {
    let hostile = b"a\"\\\r\n\x1b[2J\x7f\xc2\x9b\xe2\x80\xae\xc3\xa9\xff\0";
    let entry = Entry { user_agent: Some(hostile), ..entry() };
    let combined = line_of(&entry, LogFormat::Combined);
    let escaped = r#" "a\x22\x5C\x0D\x0A\x1B[2J\x7F\xC2\x9B\xE2\x80\xAE\xC3\xA9\xFF\x00" "#;
    assert!(combined.contains(escaped), "{combined}");
    let json = line_of(&entry, LogFormat::Json);
    let escaped = "\"user_agent\":\"a\\u0022\\u005c\\u000d\\u000a\\u001b[2J\\u007f\\u009b\\u202eé\\u00ff\\u0000\",";
    assert!(json.contains(escaped), "{json}");
}

#[test]
fn overlong_texts_are_cut_and_say_so() {
    let long = vec![b'x'; 100_000];
    let exact = vec![b'x'; 4096];
    for format in [LogFormat::Combined, LogFormat::Json] {
        let line = line_of(&Entry { target: Some(&long), ..entry() }, format);
        assert!(line.contains(&format!("{}...", "x".repeat(4093))));
        assert!(!line.contains(&"x".repeat(4094)));
        let line = line_of(&Entry { target: Some(&exact), ..entry() }, format);
        assert!(line.contains(&"x".repeat(4096)));
    }
}

#[test]
fn lines_are_written_when_the_first_is_a_second_old() {
    let file = memory_file();
    let mut log = AccessLog::new(appending(&file), LogFormat::Json);
    assert_eq!(log.deadline(), None);
    log.record(&entry(), 5000);
    log.record(&entry(), 5900);
    assert_eq!(log.deadline(), Some(6000));
    assert_eq!(contents(&file), "");
    log.flush(6000);
    assert_eq!(log.deadline(), None);
    assert_eq!(contents(&file), format!("{0}\n{0}\n", line_of(&entry(), LogFormat::Json)));
}

#[test]
fn lines_are_written_when_they_fill_the_buffer_and_do_not_make_it_grow() {
    let file = memory_file();
    let mut log = AccessLog::new(appending(&file), LogFormat::Combined);
    let line = line_of(&entry(), LogFormat::Combined).len() + 1;
    let full = FLUSH_BYTES.div_ceil(line);
    for _ in 1..full {
        log.record(&entry(), 0);
    }
    assert_eq!(contents(&file), "");
    let capacity = log.buffer.capacity();
    for _ in 0..10 * full {
        log.record(&entry(), 0);
    }
    assert_eq!(contents(&file).len() / line, 10 * full);
    assert_eq!(log.buffer.capacity(), capacity);
}

#[test]
fn lines_of_several_workers_do_not_mix() {
    let file = memory_file();
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            let mut log = AccessLog::new(appending(&file), LogFormat::Json);
            std::thread::spawn(move || {
                for _ in 0..2000 {
                    log.record(&Entry { worker, ..entry() }, 0);
                }
                log.flush(0);
                assert_eq!(log.dropped(), 0);
            })
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    let lines = [0, 1, 2, 3].map(|worker| line_of(&Entry { worker, ..entry() }, LogFormat::Json));
    let text = contents(&file);
    assert_eq!(text.lines().count(), 8000);
    assert!(text.lines().all(|line| lines.iter().any(|expected| expected == line)));
}

#[test]
fn a_pipe_that_is_not_read_costs_whole_lines_and_no_time() {
    let (reader, writer) = pipe_of(8192);
    let mut log = AccessLog::new(writer, LogFormat::Json);
    let line = line_of(&entry(), LogFormat::Json);
    let sent = 3000;
    // Returns although the pipe's end would wait.
    (0..sent).for_each(|_| log.record(&entry(), 0));
    assert!(log.jammed);
    assert_eq!(log.deadline(), Some(RETRY_MS));
    assert!(log.buffer.len() < MAX_KEPT_BYTES + MAX_LINE_BYTES);
    assert!(log.dropped() > 0);
    let mut received = 0;
    while let Some(now_ms) = log.deadline() {
        let text = available(&reader);
        assert!(text.is_empty() || text.ends_with('\n'));
        assert!(text.lines().all(|each| each == line));
        received += text.lines().count();
        log.flush(now_ms);
    }
    received += available(&reader).lines().count();
    assert_eq!(u64::try_from(received).unwrap() + log.dropped(), sent);
    assert!(log.buffer.capacity() <= FLUSH_BYTES + MAX_LINE_BYTES);
}

#[test]
fn a_line_longer_than_a_pipe_takes_is_completed_later() {
    let (reader, writer) = pipe_of(4096);
    let mut log = AccessLog::new(writer, LogFormat::Json);
    let long = Entry { target: Some(&[b'x'; 4096]), ..entry() };
    log.record(&long, 0);
    log.flush(0);
    assert!(log.torn);
    let mut text = available(&reader);
    assert_eq!(text.len(), 4096);
    log.flush(100);
    assert!(!log.torn);
    text += &available(&reader);
    assert_eq!(text, line_of(&long, LogFormat::Json) + "\n");
}

#[test]
fn what_follows_a_torn_line_begins_on_a_line_of_its_own() {
    let (reader, writer) = pipe_of(4096);
    let mut log = AccessLog::new(writer, LogFormat::Json);
    log.record(&Entry { target: Some(&[b'x'; 4096]), ..entry() }, 0);
    log.record(&entry(), 0);
    log.flush(0);
    assert!(log.torn);
    drop(reader);
    log.flush(1);
    assert_eq!(log.dropped(), 2);
    log.flush(2);
    assert_eq!(log.dropped(), 2, "the line end that is kept is no line");
    // As if the same file had room again.
    let file = memory_file();
    log.fd = appending(&file);
    log.record(&entry(), 3);
    log.flush(3);
    assert_eq!(contents(&file), format!("\n{}\n", line_of(&entry(), LogFormat::Json)));
    assert!(!log.torn && !log.patched);
}

#[test]
fn a_closed_pipe_and_a_full_disk_cost_lines_only() {
    let (reader, writer) = pipe_of(4096);
    drop(reader);
    let (socket, peer) = UnixStream::pair().unwrap();
    drop(peer);
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    for fd in [writer, socket.into(), full.into()] {
        let mut log = AccessLog::new(fd, LogFormat::Combined);
        for turn in 0..1000 {
            log.record(&entry(), turn);
        }
        log.flush(1000);
        assert_eq!(log.dropped(), 1000);
        assert_eq!(log.deadline(), None);
        assert!(log.buffer.is_empty());
    }
}

#[test]
fn a_file_that_fills_up_in_the_middle_of_a_line_costs_that_line_and_those_after() {
    let file = memory_file();
    ftruncate(&file, 8192).unwrap();
    fcntl_add_seals(&file, SealFlags::GROW).unwrap();
    let mut log = AccessLog::new(file.try_clone().unwrap().into(), LogFormat::Combined);
    let line = line_of(&entry(), LogFormat::Combined);
    (0..100).for_each(|_| log.record(&entry(), 0));
    log.flush(0);
    let whole = contents(&file).lines().filter(|each| **each == line).count();
    assert_eq!(whole, 8192 / (line.len() + 1));
    assert_eq!(usize::try_from(log.dropped()).unwrap(), 100 - whole);
}

#[test]
fn a_new_file_gets_what_comes_after_and_the_old_one_what_came_before() {
    let (old, new) = (memory_file(), memory_file());
    let mut log = AccessLog::new(appending(&old), LogFormat::Combined);
    log.record(&entry(), 0);
    log.replace(appending(&new), 10);
    log.record(&Entry { worker: 3, ..entry() }, 20);
    log.flush(30);
    assert_eq!(contents(&old), line_of(&entry(), LogFormat::Combined) + "\n");
    assert_eq!(contents(&new), line_of(&Entry { worker: 3, ..entry() }, LogFormat::Combined) + "\n");
}

#[test]
fn a_new_file_gets_only_whole_lines_of_what_the_old_one_had_no_room_for() {
    let (_reader, writer) = pipe_of(4096);
    let mut log = AccessLog::new(writer, LogFormat::Json);
    log.record(&Entry { target: Some(&[b'x'; 4096]), ..entry() }, 0);
    log.record(&entry(), 0);
    let file = memory_file();
    log.replace(appending(&file), 1);
    assert_eq!(log.dropped(), 1);
    assert_eq!(log.deadline(), Some(1));
    log.flush(1);
    assert_eq!(contents(&file), line_of(&entry(), LogFormat::Json) + "\n");
}

#[test]
fn a_terminal_gets_lines_too() {
    // A terminal does not know how to write without waiting, so this takes the way by poll.
    let master = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY);
    let Ok(master) = master else { panic!("no pseudo-terminals here") };
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
    let terminal = OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let mut log = AccessLog::new(terminal.into(), LogFormat::Combined);
    log.record(&entry(), 0);
    log.flush(0);
    assert_eq!(log.dropped(), 0);
    let mut text = vec![0; 4096];
    let n = File::from(master).read(&mut text).unwrap();
    assert_eq!(String::from_utf8_lossy(&text[..n]).trim_end(), line_of(&entry(), LogFormat::Combined));
}

/// The characters of a JSON string, its quotes taken off; `None` if it is not one.
fn unescape(json: &str) -> Option<String> {
    let mut chars = json.chars();
    let mut text = String::new();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                if chars.next()? != 'u' {
                    return None;
                }
                let code: String = chars.by_ref().take(4).collect();
                text.push(char::from_u32(u32::from_str_radix(&code, 16).ok()?)?);
            }
            '"' | '\0'..='\x1f' => return None,
            c => text.push(c),
        }
    }
    Some(text)
}

proptest! {
    #[test]
    fn any_bytes_make_one_readable_line(
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..600),
            any::<String>().prop_map(String::into_bytes),
            // Long enough to be cut, at every place within an escape.
            (0usize..12, any::<[u8; 3]>()).prop_map(|(n, fill)| [&vec![b'.'; n][..], &fill.repeat(2000)].concat()),
        ],
    ) {
        let backend = String::from_utf8_lossy(&bytes).into_owned();
        let entry = Entry {
            method: Some(&bytes), target: Some(&bytes), version: Some(&bytes), host: Some(&bytes),
            referer: Some(&bytes), user_agent: Some(&bytes), backend: Some(&backend), reason: Some(&backend),
            bytes_in: u64::MAX, bytes_out: u64::MAX, retries: u32::MAX, status: Some(u16::MAX),
            client: Some("[1111:2222:3333:4444:5555:6666:7777:8888]:65535".parse().unwrap()),
            connect_us: Some(u64::MAX), first_byte_us: Some(u64::MAX), total_us: Some(u64::MAX),
            ..Entry::new(Mode::Http, u64::MAX, u16::MAX)
        };

        let combined = line_of(&entry, LogFormat::Combined);
        prop_assert!(combined.bytes().all(|byte| matches!(byte, b' '..=b'~')));
        // Quotes come only in pairs around the seven quoted fields, so that every field is found by them.
        let fields: Vec<_> = combined.split('"').collect();
        prop_assert_eq!(fields.len(), 13);
        prop_assert_eq!(fields[6], " host=");
        prop_assert!(fields[10].starts_with(" worker=65535 port=65535 connect_us=18446744073709551615 "));

        let json = line_of(&entry, LogFormat::Json);
        prop_assert!(!json.contains(char::is_control));
        let (_, rest) = json.split_once(",\"target\":\"").unwrap();
        let target = unescape(rest.split('"').next().unwrap()).expect("a JSON string");
        let mut expected = String::new();
        for chunk in bytes.utf8_chunks() {
            expected += chunk.valid();
            expected.extend(chunk.invalid().iter().map(|byte| char::from(*byte)));
        }
        match target.strip_suffix("...") {
            Some(beginning) if target != expected => {
                prop_assert!(expected.starts_with(beginning));
                prop_assert!(rest.split('"').next().unwrap().len() > 4096 - 3 - 6);
            }
            Some(_) | None => prop_assert_eq!(target, expected),
        }
    }
}
