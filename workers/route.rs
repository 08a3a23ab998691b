//! Which backend group a request goes to, by its host and path.
//!
//! The most specific host wins (exact, then wildcard, then any) and within it the most specific path (exact, then
//! the longest prefix); a host without a matching path falls back to the next less specific one.
//!
//! Paths are compared byte by byte, as given: a prefix is a plain prefix of bytes, as in nginx, so that `/api`
//! also matches `/apis` and `/api/` does not match `/api`. (nginx answers `/api` with a redirect to `/api/` where
//! that is a proxied location; nothing of the kind happens here.) Nothing is decoded and no dot segments are
//! removed: that is for the caller to have done, or refused, before.
//!
//! A lookup allocates nothing and takes time in proportion to the logarithm of the number of routes. Hosts are
//! hashed with the standard library's keyed SipHash, because clients choose them.

use std::collections::HashMap;

use ipc::snapshot::{GroupId, HostMatch, PathMatch, Route};

/// The longest host that is looked up, in bytes: that of DNS (RFC 1035 section 2.3.4). A longer one matches only
/// routes for any host.
pub const MAX_HOST_BYTES: usize = 255;

/// All routes of one snapshot. Immutable.
#[derive(Debug, Default)]
pub struct Router {
    exact: HashMap<Box<[u8]>, Paths>,
    /// By what follows the first label, the dot included.
    wildcard: HashMap<Box<[u8]>, Paths>,
    any: Paths,
}

impl Router {
    /// Compiles `routes`. Of two with the same host and path, which a checked snapshot has not, the first counts.
    #[must_use]
    pub fn new(routes: &[Route]) -> Router {
        let mut router = Router::default();
        for route in routes {
            let paths = match &route.host {
                HostMatch::Any => &mut router.any,
                HostMatch::Exact(host) => router.exact.entry(host.as_bytes().into()).or_default(),
                HostMatch::Wildcard(suffix) => router.wildcard.entry(suffix.as_bytes().into()).or_default(),
            };
            paths.add(&route.path, route.to);
        }
        router.exact.values_mut().chain(router.wildcard.values_mut()).for_each(Paths::finish);
        router.any.finish();
        router
    }

    /// The group for a request to `host` (without a port, in any case, empty if there is none) for `path` (without
    /// the query). One dot at the end of the host, which marks it as complete (RFC 3986 section 3.2.2), is ignored.
    #[must_use]
    pub fn find(&self, host: &[u8], path: &[u8]) -> Option<GroupId> {
        let host = host.strip_suffix(b".").unwrap_or(host);
        let mut lower = [0; MAX_HOST_BYTES];
        if let Some(lower) = lower.get_mut(..host.len())
            && !(self.exact.is_empty() && self.wildcard.is_empty())
        {
            lower.copy_from_slice(host);
            lower.make_ascii_lowercase();
            if let Some(group) = self.exact.get(&*lower).and_then(|paths| paths.find(path)) {
                return Some(group);
            }
            // A wildcard stands for one label, and a label has at least one character.
            if let Some(dot) = memchr::memchr(b'.', lower).filter(|&dot| dot > 0)
                && let Some(group) = self.wildcard.get(&lower[dot..]).and_then(|paths| paths.find(path))
            {
                return Some(group);
            }
        }
        self.any.find(path)
    }
}

/// The paths of one host.
#[derive(Debug, Default)]
struct Paths {
    /// Sorted.
    exact: Vec<(Box<[u8]>, GroupId)>,
    /// Sorted, so that everything a prefix is a prefix of follows it without a gap.
    prefixes: Vec<Prefix>,
}

#[derive(Debug)]
struct Prefix {
    bytes: Box<[u8]>,
    to: GroupId,
    /// The longest other entry that is a prefix of this one; it comes before.
    parent: Option<usize>,
}

impl Paths {
    fn add(&mut self, path: &PathMatch, to: GroupId) {
        match path {
            PathMatch::Exact(path) => self.exact.push((path.as_bytes().into(), to)),
            PathMatch::Prefix(path) => {
                // `/` matches all, also `OPTIONS *` and the authority of a CONNECT, which have no slash.
                let bytes = if path == "/" { b"" } else { path.as_bytes() };
                self.prefixes.push(Prefix { bytes: bytes.into(), to, parent: None });
            }
        }
    }

    /// To be called once, after the last [`Paths::add`].
    fn finish(&mut self) {
        self.exact.sort_by(|a, b| a.0.cmp(&b.0));
        self.exact.dedup_by(|later, first| later.0 == first.0);
        self.prefixes.sort_by(|a, b| a.bytes.cmp(&b.bytes));
        self.prefixes.dedup_by(|later, first| later.bytes == first.bytes);
        for index in 1..self.prefixes.len() {
            let (before, rest) = self.prefixes.split_at_mut(index);
            let mut parent = Some(index - 1);
            while let Some(at) = parent
                && !rest[0].bytes.starts_with(&before[at].bytes)
            {
                parent = before[at].parent;
            }
            rest[0].parent = parent;
        }
    }

    fn find(&self, path: &[u8]) -> Option<GroupId> {
        if let Ok(index) = self.exact.binary_search_by(|(exact, _)| (**exact).cmp(path)) {
            return Some(self.exact[index].1);
        }
        // The last entry not after `path`. The longest prefix sought is that entry or a prefix of it: it is not
        // after `path` either, and what lies between the two begins with it.
        let mut at = self.prefixes.partition_point(|prefix| *prefix.bytes <= *path).checked_sub(1)?;
        let common = self.prefixes[at].bytes.iter().zip(path).take_while(|(a, b)| a == b).count();
        while self.prefixes[at].bytes.len() > common {
            at = self.prefixes[at].parent?;
        }
        Some(self.prefixes[at].to)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    fn host(text: &str) -> HostMatch {
        match text.strip_prefix('*') {
            Some("") => HostMatch::Any,
            Some(suffix) => HostMatch::Wildcard(suffix.into()),
            None => HostMatch::Exact(text.into()),
        }
    }

    /// `=` before a path makes it exact, as in the configuration.
    fn route(of: &str, path: &str, to: GroupId) -> Route {
        let path = match path.strip_prefix('=') {
            Some(exact) => PathMatch::Exact(exact.into()),
            None => PathMatch::Prefix(path.into()),
        };
        Route { host: host(of), path, to }
    }

    fn router(routes: &[(&str, &str)]) -> Router {
        Router::new(&(0..).zip(routes).map(|(to, (host, path))| route(host, path, to)).collect::<Vec<_>>())
    }

    #[test]
    fn the_more_specific_host_wins_and_falls_back_by_path() {
        let router = router(&[("*", "/"), ("*.example.com", "/"), ("www.example.com", "/a/"), ("*.com", "/")]);
        assert_eq!(router.find(b"www.example.com", b"/a/b"), Some(2));
        assert_eq!(router.find(b"www.example.com", b"/b"), Some(1));
        assert_eq!(router.find(b"WWW.Example.COM", b"/a/"), Some(2));
        assert_eq!(router.find(b"www.example.com.", b"/a/"), Some(2));
        assert_eq!(router.find(b"api.example.com", b"/a/"), Some(1));
        assert_eq!(router.find(b"example.com", b"/"), Some(3));
        assert_eq!(router.find(b"a.b.example.com", b"/"), Some(0));
        assert_eq!(router.find(b".example.com", b"/"), Some(0));
        assert_eq!(router.find(b"", b"/"), Some(0));
        assert_eq!(router.find(b".", b"/"), Some(0));
        assert_eq!(router.find(b"\xff\0\x80.com", b"/"), Some(3));
    }

    #[test]
    fn the_more_specific_path_wins() {
        let router = router(&[("*", "/"), ("*", "/api/"), ("*", "=/api/"), ("*", "/api/v1"), ("*", "=/x")]);
        assert_eq!(router.find(b"h", b"/api/"), Some(2));
        assert_eq!(router.find(b"h", b"/api"), Some(0));
        assert_eq!(router.find(b"h", b"/api/v"), Some(1));
        assert_eq!(router.find(b"h", b"/api/v12"), Some(3));
        assert_eq!(router.find(b"h", b"/x"), Some(4));
        assert_eq!(router.find(b"h", b"/x/"), Some(0));
        assert_eq!(router.find(b"h", b"*"), Some(0));
        assert_eq!(router.find(b"h", b""), Some(0));
    }

    #[test]
    fn without_a_match_there_is_no_group() {
        let router = router(&[("a.b", "/x/"), ("*.b", "/y/"), ("*", "=/z")]);
        assert_eq!(router.find(b"a.b", b"/"), None);
        assert_eq!(router.find(b"a.b", b"/y/1"), Some(1));
        assert_eq!(router.find(b"c.b", b"/x/1"), None);
        assert_eq!(router.find(b"a.b", b"/z"), Some(2));
        assert_eq!(Router::new(&[]).find(b"a.b", b"/"), None);
    }

    #[test]
    fn a_host_longer_than_dns_allows_matches_only_any_host() {
        let long = format!("{}.example.com", "a".repeat(MAX_HOST_BYTES));
        let router = router(&[("*", "/"), (&long, "/"), ("*.example.com", "/")]);
        assert_eq!(router.find(long.as_bytes(), b"/"), Some(0));
        let fits = format!("{}.example.com", "a".repeat(MAX_HOST_BYTES - 12));
        assert_eq!(router.find(fits.as_bytes(), b"/"), Some(2));
    }

    #[test]
    fn ten_thousand_routes_cost_little_more_than_ten() {
        let make = |n: GroupId| {
            let routes = (0..n).flat_map(|i| {
                [route(&format!("host{i}.example.com"), "/", i), route("*", &format!("/service/{i}/v{}", i % 7), i)]
            });
            Router::new(&routes.collect::<Vec<_>>())
        };
        let time = |router: &Router, n: GroupId| {
            let names: Vec<_> =
                (0..n).map(|i| (format!("host{i}.example.com"), format!("/service/{i}/v{}/x", i % 7))).collect();
            // The best of several rounds: other processes can only make a round slower.
            let round = || {
                let start = Instant::now();
                for (i, (host, path)) in (0..n).zip(&names).cycle().take(2000) {
                    assert_eq!(router.find(host.as_bytes(), b"/"), Some(i));
                    assert_eq!(router.find(b"other", path.as_bytes()), Some(i));
                }
                start.elapsed()
            };
            (0..20).map(|_| round()).min().unwrap()
        };
        let (few, many) = (time(&make(10), 10), time(&make(10_000), 10_000));
        // A linear search would take a thousand times as long.
        assert!(many < few * 20, "{many:?} against {few:?}");
    }

    /// The rules of the snapshot, word by word.
    fn naive(routes: &[Route], host: &[u8], path: &[u8]) -> Option<GroupId> {
        let host = host.strip_suffix(b".").unwrap_or(host).to_ascii_lowercase();
        let specificity = |route: &Route| {
            let of_host = match &route.host {
                HostMatch::Any => 0,
                HostMatch::Exact(exact) => (exact.as_bytes() == host).then_some(usize::MAX)?,
                HostMatch::Wildcard(suffix) => {
                    let label = host.strip_suffix(suffix.as_bytes())?;
                    (!label.is_empty() && !label.contains(&b'.')).then_some(suffix.len())?
                }
            };
            let of_path = match &route.path {
                PathMatch::Exact(exact) => (exact.as_bytes() == path).then_some(usize::MAX)?,
                PathMatch::Prefix(prefix) => {
                    (prefix == "/" || path.starts_with(prefix.as_bytes())).then_some(prefix.len())?
                }
            };
            Some((of_host, of_path))
        };
        let matching = routes.iter().filter_map(|route| Some((specificity(route)?, route.to)));
        matching.max_by_key(|(specificity, _)| *specificity).map(|(_, to)| to)
    }

    fn any_path() -> impl Strategy<Value = String> {
        "/[ab/]{0,5}"
    }

    fn any_host() -> impl Strategy<Value = String> {
        "[ab]{1,2}(\\.[ab]){0,3}"
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn it_finds_what_a_linear_search_finds(
            routes in prop::collection::btree_map(
                (prop_oneof![Just("*".to_owned()), any_host(), any_host().prop_map(|host| format!("*.{host}"))],
                 any::<bool>(), any_path()),
                any::<GroupId>(), 0..60),
            requests in prop::collection::vec((prop_oneof![any_host(), "[abAB.]{0,6}"], any_path()), 1..60),
        ) {
            let routes: Vec<Route> = routes
                .into_iter()
                .map(|((host, exact, path), to)| route(&host, &format!("{}{path}", if exact { "=" } else { "" }), to))
                .collect();
            let router = Router::new(&routes);
            for (host, path) in requests {
                prop_assert_eq!(
                    router.find(host.as_bytes(), path.as_bytes()),
                    naive(&routes, host.as_bytes(), path.as_bytes()),
                    "{} {}", host, path
                );
            }
        }
    }
}
