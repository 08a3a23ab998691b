//! What targets a forward listener finds: the proxy's own addresses, names that lead astray, families without a way.

use crate::common::backend::Backend;
use crate::common::client::Client;
use crate::common::proxy::{Addr, Proxy, replace_all, wait_gone};
use crate::forward::{LOOPBACK, connect, launch, log, try_connect};

/// The rule that decides about a tunnel to `target`, which must be refused.
fn decided(proxy: &Proxy, target: &Addr, lines: &mut usize) -> String {
    assert_eq!(try_connect(proxy, target, "").status, 403, "{target}");
    *lines += 1;
    log(proxy, *lines)[*lines - 1]["rule"].as_str().unwrap().to_owned()
}

#[test]
fn listeners_on_ports_that_the_kernel_chose_are_the_proxys_own() {
    let backend = Backend::ok();
    let listener = |bind: &str| format!("[[listen]]\nbind = \"{bind}:0\"\nto = \"b\"\n");
    let group = format!("[backends.b]\nservers = [\"{}\"]\n", backend.addr);
    let rules = format!("list = [{LOOPBACK}]\n{group}{}{}", listener("127.0.0.2"), listener("0.0.0.0"));
    let mut proxy = launch(&rules, "").start();
    let text = std::fs::read_to_string(proxy.dir.join("pointsman.toml")).unwrap();
    let text = text.split_once('\n').unwrap().1.to_owned();
    let mut lines = 0;
    let check = |proxy: &Proxy, lines: &mut usize| {
        let [_, one, any] = [0, 1, 2].map(|at| proxy.addrs()[at].inet());
        for own in [one, ([127, 0, 0, 1], any.port()).into(), ([127, 0, 0, 9], any.port()).into()] {
            assert_eq!(decided(proxy, &Addr::Inet(own), lines), "t:own listener", "{own}");
        }
    };
    check(&proxy, &mut lines);
    replace_all(&mut proxy, 2);
    check(&proxy, &mut lines);
    proxy.reload(2, &format!("{text}{}", listener("127.0.0.3")));
    let added = proxy.wait_for_listener(3);
    assert_eq!(decided(&proxy, &added, &mut lines), "t:own listener");
    proxy.upgrade();
    check(&proxy, &mut lines);
    let orphans = proxy.kill_master();
    let proxy = proxy.again();
    wait_gone(&orphans);
    check(&proxy, &mut lines);
    // What is open beside them stays open.
    let mut client = Client::connect(proxy.addr());
    assert_eq!(connect(&mut client, backend.addr, "").status, 200);
}
