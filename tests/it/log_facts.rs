//! What a line of the access log says: why a request failed, what was understood of one that is refused, how many bytes
//! and how much time. And what the log itself says of a server that fails.

use serde_json::Value;

use crate::common::backend::{Backend, Refusing};
use crate::common::client::{Client, get};
use crate::common::conf::Conf;
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

#[test]
fn where_nobody_connected_to_a_server_no_time_is_told_for_it() {
    let backend = Backend::ok();
    let tables = "[backends.none]\nservers = []\n[[route]]\npath = \"/none\"\nto = \"none\"";
    let proxy = logging("json", &[backend.addr]).tables(tables).start();
    assert_eq!(get(proxy.addr(), "/none").status, 503);
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.ask("GET / HTTP/9.9\r\n\r\n").status, 505);
    assert_eq!(get(proxy.addr(), "/").status, 200);
    let lines = json(&proxy, 3);
    let told = |status: u16| &lines.iter().find(|line| line["status"] == status).unwrap()["connect_us"];
    assert_eq!([told(503), told(505)], [&Value::Null, &Value::Null]);
    assert!(told(200).is_u64());
}

/// Sends `bytes`, closes the sending side, and gives the answer's status and body length.
fn refused(proxy: &crate::common::proxy::Proxy, bytes: impl AsRef<[u8]>) -> (u16, usize) {
    let mut client = Client::connect(proxy.addr());
    client.send(bytes);
    client.shutdown_write();
    let response = client.response();
    (response.status, response.body.len())
}

#[test]
fn of_a_request_that_is_refused_the_log_has_what_was_understood() {
    let backend = Backend::ok();
    let proxy = logging("json", &[backend.addr]).start();
    let many = format!("PUT /many HTTP/1.1\r\nHost: shop.test\r\n{}\r\n", "X: y\r\n".repeat(200));
    let rows: [(&str, u16, Value, Value, Value, Value); 7] = [
        (
            "POST /x?y HTTP/1.1\r\nHost: shop.test:81\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            400,
            "POST".into(),
            "/x?y".into(),
            "HTTP/1.1".into(),
            "shop.test:81".into(),
        ),
        (&many, 431, "PUT".into(), "/many".into(), "HTTP/1.1".into(), "shop.test".into()),
        ("GET /a%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400, "GET".into(), "/a%zz".into(), Value::Null, Value::Null),
        ("GET /v HTTP/3.0\r\nHost: a\r\n\r\n", 505, "GET".into(), "/v".into(), Value::Null, Value::Null),
        (
            "GET http://t.test/p HTTP/1.0\r\nBad Name: x\r\n\r\n",
            400,
            "GET".into(),
            "http://t.test/p".into(),
            "HTTP/1.0".into(),
            "t.test".into(),
        ),
        // Not whole when the client has had enough.
        (
            "POST /slow HTTP/1.1\r\nHost: shop.test\r\nReferer: http://r",
            400,
            "POST".into(),
            "/slow".into(),
            "HTTP/1.1".into(),
            "shop.test".into(),
        ),
        ("\0\0\0\0", 400, Value::Null, Value::Null, Value::Null, Value::Null),
    ];
    for (count, (request, status, method, target, version, host)) in rows.into_iter().enumerate() {
        let (answered, body) = refused(&proxy, request);
        assert_eq!(answered, status, "{request}");
        let line = json(&proxy, count + 1).pop().unwrap();
        assert_eq!([&line["method"], &line["target"]], [&method, &target], "{line}");
        assert_eq!([&line["version"], &line["host"]], [&version, &host], "{line}");
        assert_eq!([&line["referer"], &line["user_agent"]], [&Value::Null, &Value::Null], "{line}");
        assert_eq!(line["bytes_out"], body, "{line}");
        assert_ne!(line["reason"], Value::Null, "{line}");
    }
    assert_eq!(backend.connections(), 0);
}

#[test]
fn other_protocols_are_named_as_the_reason() {
    let backend = Backend::ok();
    let proxy = logging("json", &[backend.addr]).start();
    let hello = b"\x16\x03\x01\x00\x2f\x01\x00\x00\x2b\x03\x03";
    assert_eq!(refused(&proxy, hello).0, 400);
    assert_eq!(json(&proxy, 1)[0]["reason"], "TLS on a listener that speaks plain HTTP");
    assert_eq!(refused(&proxy, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").0, 400);
    assert_eq!(json(&proxy, 2).pop().unwrap()["reason"], "HTTP/2 without TLS is not spoken here");
}

#[test]
fn answers_of_our_own_count_with_their_bodies() {
    let backend = Backend::ok();
    let proxy = logging("json", &[backend.addr]).unrouted().tables("[[route]]\npath = \"/x\"\nto = \"web\"").start();
    let response = get(proxy.addr(), "/elsewhere");
    assert_eq!((response.status, response.body.len()), (404, "404 Not Found\n".len()));
    assert_eq!(json(&proxy, 1)[0]["bytes_out"], response.body.len());
    let mut client = Client::connect(proxy.addr());
    client.send("HEAD /elsewhere HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response_to("HEAD").status, 404);
    assert_eq!(json(&proxy, 2).pop().unwrap()["bytes_out"], 0);
}

#[test]
fn the_time_to_connect_is_known_of_every_new_connection_and_of_no_kept_one() {
    let backend = Backend::ok();
    let proxy = logging("json", &[backend.addr]).launch().workers(1).start();
    let mut client = Client::connect(proxy.addr());
    for (count, new) in [(1, true), (2, false), (3, false)] {
        assert_eq!(client.get("/").status, 200);
        let line = json(&proxy, count).pop().unwrap();
        assert_eq!(line["connect_us"].is_u64(), new, "{line}");
    }
}
