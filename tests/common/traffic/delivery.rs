//! Streams to a target that the client names, whose other direction comes over a connection of its own: the dynamic address
//! exchange with `reply_to`.
//!
//! Each side checks every byte as in [`super::stream`], and the client the line that it gets in the end.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use super::server::Ledger;
use super::stream::{HEADER, down_id, read, write};
use super::{Outcome, Peer, Seen};
use crate::common::proxy::Addr;
use crate::common::rng::Rng;
use crate::common::{DEADLINE, dawdle, wait_for};

/// A new exchange for each stream.
#[derive(Debug)]
pub struct Delivery {
    pub addr: Addr,
    pub target: SocketAddr,
    pub ledger: Arc<Ledger>,
}

/// The client's sockets.
struct Sockets {
    client: TcpStream,
    listener: TcpListener,
}

impl Sockets {
    /// The line in the end, behind which there is nothing.
    fn line(&self) -> Result<String, String> {
        let mut line = String::new();
        (&self.client).read_to_string(&mut line).map_err(|error| format!("after {line:?}: {error}"))?;
        Ok(line)
    }

    /// Waits for the connection with the answer; `None` when the client's own has ended before.
    fn accept(&self) -> Option<TcpStream> {
        wait_for("an answer, or the end", || match self.listener.accept() {
            Ok((stream, _)) => Some(Some(stream)),
            Err(_) => {
                self.client.set_nonblocking(true).unwrap();
                let seen = self.client.peek(&mut [0]);
                self.client.set_nonblocking(false).unwrap();
                (!seen.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)).then_some(None)
            }
        })
    }
}

impl Delivery {
    fn exchange(&self, id: u64, up: u64, down: u64, rng: &mut Rng) -> Outcome {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let sockets = Sockets { client: TcpStream::connect(self.addr.inet()).unwrap(), listener };
        let mut client = &sockets.client;
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        let reply_to = sockets.listener.local_addr().unwrap();
        let line = format!("{{\"target\":\"{}\",\"reply_to\":\"{reply_to}\"}}\n", self.target);
        // The server begins when all has come: when it has ended, so has the exchange.
        let header: Vec<u8> = [id, up, down, 1].iter().flat_map(|n| n.to_be_bytes()).collect();
        let beginning = [line.as_bytes(), &header].concat();
        // In pieces, so that workers die within it too.
        let (first, rest) = beginning.split_at(rng.below(beginning.len() as u64) as usize);
        client.write_all(first).map_err(|error| format!("sending the line: {error}"))?;
        dawdle(rng.pause(2000));
        client.write_all(rest).map_err(|error| format!("sending the header: {error}"))?;
        let sent = write(client, id, up, rng);
        let Some(reply) = sockets.accept() else {
            // Two workers have died over it before it had begun.
            return match sockets.line() {
                Err(reset) if reset.starts_with("after \"\"") => Ok(Seen::BadGateway),
                other => Err(format!("before an answer: {other:?}")),
            };
        };
        sent?;
        reply.set_nonblocking(false).unwrap();
        reply.set_read_timeout(Some(DEADLINE)).unwrap();
        read(&reply, &[], down_id(id), down, rng).map_err(|error| format!("the answer: {error}"))?;
        let told = sockets.line()?;
        let wanted = format!(
            "{{\"ok\":true,\"address\":\"{}\",\"sent\":{},\"delivered\":{down}}}\n",
            self.target,
            HEADER as u64 + up
        );
        if told != wanted {
            return Err(format!("{told:?}, not {wanted:?}"));
        }
        if sockets.listener.accept().is_ok() {
            return Err("the answer came twice".to_owned());
        }
        let _ = client.shutdown(Shutdown::Both);
        Ok(Seen::Whole)
    }
}

impl Peer for Delivery {
    fn turn(&mut self, rng: &mut Rng) -> Outcome {
        let id = self.ledger.id();
        let mut length = || match rng.below(10) {
            0..2 => rng.below(3),
            2..5 => rng.below(30_000),
            5..9 => rng.below(500_000),
            _ => 6_000_000 + rng.below(3_000_000),
        };
        let (up, down) = (length(), length());
        let name = format!("exchange {id} ({up} bytes up, {down} down)");
        match self.exchange(id, up, down, rng).map_err(|error| format!("{name}: {error}"))? {
            Seen::Whole => {}
            other @ (Seen::BadGateway | Seen::Truncated) => return Ok(other),
        }
        let at_server = wait_for(&format!("{name} ends at the server"), || self.ledger.stream(id));
        self.ledger.forget(id);
        at_server.map_err(|error| format!("{name}: {error}")).map(|()| Seen::Whole)
    }
}
