//! Everything that this process has open, by what the kernel says.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::AsFd;

/// The inode of what is open: the same for every copy of a descriptor.
pub(super) fn inode(fd: impl AsFd) -> u64 {
    rustix::fs::fstat(fd).unwrap().st_ino
}

/// Every descriptor of this process, as `/proc` names it.
pub(super) fn descriptors() -> Vec<String> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    entries
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect()
}

/// The ports of clients that wait to be accepted: the kernel has no inode for their connections yet.
pub(super) fn waiting() -> HashSet<u16> {
    let text = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let connections = text.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let port = u16::from_str_radix(fields[2].rsplit(':').next()?, 16).ok()?;
        (fields[3] == "01" && fields[9] == "0").then_some(port)
    });
    connections.collect()
}

/// How many there are of each kind. Pipes come and go with the load.
pub(super) fn kinds() -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for target in descriptors() {
        let kind = if target.contains("memfd") { "memfd" } else { target.split([':']).next().unwrap() };
        // The model's own stand-ins for processes are eventfds.
        if kind != "pipe" && !target.starts_with("/proc") && !target.contains("eventfd") {
            *kinds.entry(format!("{kind}{}", if kind == "anon_inode" { &target[10..] } else { "" })).or_default() += 1;
        }
    }
    kinds
}
