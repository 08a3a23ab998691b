//! Where an exchange with `reply_to` has its answer delivered, in the model: a client's second half. It knows every byte
//! that must come, that it comes over one connection, and how that may end.

use std::net::{TcpListener, TcpStream};

use super::servers::{byte, read};

/// See the module's description.
#[derive(Debug)]
pub struct Delivery {
    listener: TcpListener,
    stream: Option<TcpStream>,
    /// Bytes that have come.
    back: u64,
    /// The end has come, in order.
    whole: bool,
}

impl Delivery {
    /// Listens.
    pub fn new() -> Delivery {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Delivery { listener, stream: None, back: 0, whole: false }
    }

    /// The line that asks for an answer to come here.
    pub fn line(&self, target: std::net::SocketAddr) -> String {
        format!("{{\"target\":\"{target}\",\"reply_to\":\"{}\"}}\n", self.listener.local_addr().unwrap())
    }

    /// Whether somebody has connected, or tries to: then nothing of the exchange is run again.
    pub fn has_begun(&self) -> bool {
        self.stream.is_some() || self.whole
    }

    /// Whether all of it has come, with its end.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Whether nothing more comes.
    pub fn is_over(&self) -> bool {
        self.stream.is_none()
    }

    /// Reads a little of what must be the `length` bytes of number `id`, of which `sent` have been sent. `excused`: it may be
    /// reset at any time. It never ends in order before all has come.
    pub fn receive(&mut self, (id, length): (u64, u64), sent: u64, most: usize, excused: bool) {
        while let Ok((stream, _)) = self.listener.accept() {
            stream.set_nonblocking(true).unwrap();
            assert!(!self.has_begun() || excused, "a second connection for one answer");
            self.stream = Some(stream);
        }
        let Some(stream) = &mut self.stream else { return };
        let mut input = Vec::new();
        let read = read(stream, &mut input, most);
        for b in input {
            assert_eq!(b, byte(id, self.back), "byte {} of an answer", self.back);
            self.back += 1;
        }
        assert!(self.back <= sent, "more has come back than was sent");
        match read {
            Ok(_) => {}
            Err(None) => {
                assert_eq!(self.back, length, "a part of an answer can be taken for all");
                (self.whole, self.stream) = (true, None);
            }
            Err(Some(error)) => {
                assert!(excused, "the connection for an answer was reset after {} bytes: {error}", self.back);
                self.stream = None;
            }
        }
    }
}
