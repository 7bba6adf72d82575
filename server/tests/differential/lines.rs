//! Streams over HTTP/1.1: one request, and results by the line for as long as the connection lasts.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::Sender;

use serde_json::Value;

use crate::grpc::{Ended, Item};
use crate::http::{Client, Request};

impl Client {
    /// Sends the request on a connection of its own; each line that comes back is sent on. The connection ends when nobody
    /// takes the lines any more.
    pub(crate) fn stream(&self, request: &Request, items: Sender<Item>) -> Connection {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(&self.message(request)).unwrap();
        let connection = Connection(stream.try_clone().unwrap());
        std::thread::spawn(move || {
            let message =
                read(BufReader::new(stream), &items).err().map_or("the end".to_owned(), |error| error.to_string());
            items.send(Item::End(Ended { code: -1, message })).unwrap_or(());
        });
        connection
    }
}

/// Ends the stream when dropped.
pub(crate) struct Connection(TcpStream);

impl Connection {
    pub(crate) fn of(stream: TcpStream) -> Self {
        Self(stream)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.shutdown(Shutdown::Both).unwrap_or(());
    }
}

fn read(mut from: BufReader<TcpStream>, items: &Sender<Item>) -> std::io::Result<()> {
    let odd = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    let mut line = String::new();
    from.read_line(&mut line)?;
    if !line.starts_with("HTTP/1.1 200") {
        return Err(odd(&line));
    }
    let mut chunked = false;
    while line != "\r\n" {
        line.clear();
        from.read_line(&mut line)?;
        chunked |= line.to_ascii_lowercase().starts_with("transfer-encoding: chunked");
    }
    if !chunked {
        return Err(odd("a stream that does not come in chunks"));
    }
    let mut body = Vec::new();
    loop {
        line.clear();
        from.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim(), 16).map_err(|_| odd(&line))?;
        let at = body.len();
        body.resize(at + size + 2, 0);
        from.read_exact(&mut body[at..])?;
        body.truncate(at + size);
        if size == 0 {
            return Ok(());
        }
        while let Some(end) = body.iter().position(|byte| *byte == b'\n') {
            let rest = body.split_off(end + 1);
            let line = std::mem::replace(&mut body, rest);
            if items.send(Item::Message(line)).is_err() {
                return Ok(());
            }
        }
    }
}

/// The result in a line.
pub(crate) fn result(line: &[u8]) -> Result<Value, String> {
    let shown = || format!("a line of a stream is {}", String::from_utf8_lossy(line));
    let mut value: Value = serde_json::from_slice(line).map_err(|_| shown())?;
    let result = value.as_object_mut().filter(|fields| fields.len() == 1).and_then(|fields| fields.remove("result"));
    result.ok_or_else(shown)
}
