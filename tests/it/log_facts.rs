//! What a line of the access log says: why a request failed, what was understood of one that is refused, how many bytes
//! and how much time. And what the log itself says of a server that fails.

use crate::common::backend::{Backend, Refusing};
use crate::common::client::{Client, get};
use crate::common::proxy::Conf;
use crate::logs::{json, logging};

const REFUSED: &str = "could not connect to the server: Connection refused";

#[test]
fn why_a_server_could_not_be_connected_to_is_said_in_the_systems_words() {
    let (refusing, other) = (Refusing::new(), Refusing::new());
    let tables = format!(
        "[backends.absent]\nservers = [\"unix:{{dir}}/none.sock\"]\n[[route]]\npath = \"/absent\"\nto = \"absent\"\n\
         [[listen]]\nbind = \"127.0.0.1:0\"\nmode = \"tcp\"\nto = \"streams\"\n\
         [backends.streams]\nservers = [\"{}\"]",
        other.addr
    );
    let proxy = logging("json", &[refusing.addr]).tables(&tables).start();
    assert_eq!(get(proxy.addr(), "/").status, 502);
    assert_eq!(json(&proxy, 1)[0]["reason"], REFUSED);
    assert_eq!(get(proxy.addr(), "/absent").status, 502);
    let line = json(&proxy, 2).pop().unwrap();
    assert_eq!(line["reason"], "could not connect to the server: No such file or directory");
    Client::connect(&proxy.addrs()[1]).end();
    let line = json(&proxy, 3).pop().unwrap();
    assert_eq!((&line["mode"], &line["reason"]), (&"tcp".into(), &REFUSED.into()));
    assert_eq!(line["retries"], 0, "no other server was tried");
}

#[test]
fn the_first_failure_of_a_server_is_in_the_log_with_what_it_means() {
    let (refusing, backend) = (Refusing::new(), Backend::ok());
    let proxy = Conf::http(&[refusing.addr, backend.addr]).launch().workers(1).start();
    // One of them is tried first, by chance.
    for _ in 0..2 {
        assert_eq!(get(proxy.addr(), "/").status, 200);
    }
    let (server, means) = (refusing.addr.to_string(), "that is 1 of 3 failures in a row after which it is passed over");
    proxy.wait_for_log(&["WARN", "backends.web: ", &server, REFUSED, means]);
}

#[test]
fn servers_with_as_many_connections_as_they_may_have_are_named_as_the_reason() {
    let backend = Backend::silent();
    let conf = logging("json", &[backend.addr]).group("keepalive = { max_per_server = 1 }");
    let proxy = conf.launch().workers(1).start();
    let mut first = Client::connect(proxy.addr());
    first.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    crate::common::wait_until("the server has the first", || backend.open() == 1);
    assert_eq!(get(proxy.addr(), "/second").status, 503);
    let line = json(&proxy, 1).pop().unwrap();
    assert_eq!(line["reason"], "the group's servers have as many connections as max_per_server allows");
}
