//! A client of the dynamic address exchange, in both forms. `docs/dynamic-exchange.md` describes it.
//!
//! ```text
//! dynamic_client PROXY TARGET             standard input to the target, its answer to standard output
//! dynamic_client PROXY TARGET --reply IP  the same, but the answer comes over a connection to IP of this machine
//! ```

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::thread;

/// The longest line that is read from the proxy, in bytes.
const LINE_MAX: usize = 4096;

/// Has the proxy connect to `target`; what comes back is the connection to it.
///
/// # Errors
/// When the proxy cannot be reached, or says why not.
pub fn relay(proxy: &str, target: &str) -> Result<TcpStream, Box<dyn Error>> {
    let mut stream = TcpStream::connect(proxy)?;
    stream.write_all(format!("{}\n", serde_json::json!({ "target": target })).as_bytes())?;
    outcome(&mut stream)?;
    Ok(stream)
}

/// Has the proxy send `request` to `target`, and the answer to a port of `own`, an address of this machine as the proxy
/// sees it.
///
/// # Errors
/// When the proxy cannot be reached, or says why not, or the answer breaks off.
pub fn deliver(proxy: &str, target: &str, own: IpAddr, request: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let listener = TcpListener::bind((own, 0))?;
    let reply_to = listener.local_addr()?;
    // The answer may begin before the request has ended, so it is read beside it.
    let receiver = thread::spawn(move || -> io::Result<Vec<u8>> {
        let mut answer = Vec::new();
        listener.accept()?.0.read_to_end(&mut answer)?;
        Ok(answer)
    });
    let mut stream = TcpStream::connect(proxy)?;
    let line = serde_json::json!({ "target": target, "reply_to": reply_to.to_string() });
    stream.write_all(format!("{line}\n").as_bytes())?;
    // The proxy may refuse before it has all of this: what it says then counts.
    let _ = stream.write_all(request).and_then(|()| stream.shutdown(Shutdown::Write));
    // A failure before the answer began leaves the receiver waiting for nobody: it ends with the program.
    outcome(&mut stream)?;
    Ok(receiver.join().map_err(|_| "the receiver failed")??)
}

/// Reads the line with which the proxy answers, and not a byte more: what follows is the target's.
fn outcome(stream: &mut TcpStream) -> Result<serde_json::Value, Box<dyn Error>> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        if line.len() == LINE_MAX || stream.read(&mut byte)? == 0 {
            return Err("the proxy ended the connection without an answer".into());
        }
        line.push(byte[0]);
    }
    let answer: serde_json::Value = serde_json::from_slice(&line)?;
    if answer["ok"] == true {
        return Ok(answer);
    }
    Err(format!("{}: {}", answer["error"].as_str().unwrap_or("?"), answer["message"].as_str().unwrap_or("?")).into())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [proxy, target] => {
            let mut stream = relay(proxy, target)?;
            let mut sender = stream.try_clone()?;
            let writer = thread::spawn(move || -> io::Result<()> {
                io::copy(&mut io::stdin(), &mut sender)?;
                sender.shutdown(Shutdown::Write)
            });
            io::copy(&mut stream, &mut io::stdout())?;
            // The target has said all: whatever of the input was not sent is of no use.
            drop(writer);
        }
        [proxy, target, "--reply", own] => {
            let mut request = Vec::new();
            io::stdin().read_to_end(&mut request)?;
            io::stdout().write_all(&deliver(proxy, target, own.parse()?, &request)?)?;
        }
        _ => return Err("usage: dynamic_client PROXY TARGET [--reply IP]".into()),
    }
    Ok(())
}
