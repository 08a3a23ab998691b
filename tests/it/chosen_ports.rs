//! Several listeners on port 0, which the configuration tells apart by their order alone: their connections stay with
//! the listener they came to, whoever takes over.

use crate::common::backend::Backend;
use crate::common::client::Client;
use crate::common::conf::Conf;
use crate::common::processes::wait_gone;
use crate::common::proxy::Proxy;

/// Kills the master and starts another.
fn replace(mut proxy: Proxy) -> Proxy {
    let addrs = proxy.addrs().to_vec();
    let orphans = proxy.kill_master();
    let next = proxy.again();
    assert_eq!(next.addrs(), addrs);
    wait_gone(&orphans);
    proxy.check_log();
    next
}

#[test]
fn connections_stay_with_their_listener_when_another_master_takes_over() {
    let [streams, pages, behind] = ["streams", "pages", "behind"].map(Backend::named);
    let conf = Conf::tcp(&[streams.addr]).tables(&format!(
        "[[listen]]\nbind = \"127.0.0.1:0\"\nto = \"pages\"\n[backends.pages]\nservers = [\"{}\"]\n\
         [[listen]]\nbind = \"127.0.0.1:0\"\nmode = \"tcp\"\nto = \"behind\"\n\
         proxy_protocol = {{ from = [\"127.0.0.1\"] }}\n[backends.behind]\nservers = [\"{}\"]",
        pages.addr, behind.addr
    ));
    let mut proxy = conf.start();
    let mut idle = Client::connect(&proxy.addrs()[1]);
    assert_eq!(idle.get("/").body, b"pages");
    let mut awaited = Client::connect(&proxy.addrs()[2]);
    awaited.send("PROXY TCP4 192.0.2.1 ");
    proxy.wait_taken_up(awaited.wire.stream.local_addr().unwrap());
    proxy = replace(proxy);
    assert_eq!(idle.get("/").body, b"pages");
    proxy.upgrade();
    assert_eq!(idle.get("/").body, b"pages");
    awaited.send("192.0.2.2 1 2\r\n");
    assert_eq!(awaited.get("/").body, b"behind");
}
