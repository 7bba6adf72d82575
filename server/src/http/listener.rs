//! Listening sockets: TCP and Unix.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};

use crate::config::{Endpoint, Url, UrlError};

/// Connections that the kernel may hold before they are accepted.
const BACKLOG: i32 = 1024;

/// Why a URL cannot be listened on.
#[derive(Debug, Error)]
pub enum BindError {
    /// It is not an address of this machine's kind.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The operating system refuses.
    #[error("cannot listen on {url}: {source}")]
    Listen {
        /// The URL.
        url: Url,
        /// Why.
        source: io::Error,
    },
}

/// A bound socket that does not accept yet.
pub(crate) struct Listener {
    pub(super) socket: ListenSocket,
    address: String,
    tcp: Option<SocketAddr>,
}

pub(super) enum ListenSocket {
    Tcp(TcpListener),
    /// With the guard that removes the socket's file.
    Unix(UnixListener, SocketFile),
}

/// Removes the file of a Unix socket when dropped.
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Binds. Connections wait in the kernel's queue until the listener is served.
    pub(crate) fn bind(url: &Url, reuse_port: bool) -> Result<Listener, BindError> {
        let failed = |source| BindError::Listen { url: url.clone(), source };
        match url.endpoint()? {
            Endpoint::Tcp(address) => {
                let socket = bind_tcp(address, reuse_port).map_err(failed)?;
                let bound = socket.local_addr().map_err(failed)?;
                Ok(Listener { socket: ListenSocket::Tcp(socket), address: bound.to_string(), tcp: Some(bound) })
            }
            Endpoint::Unix(path) => {
                remove_stale(&path).map_err(failed)?;
                let socket = UnixListener::bind(&path).map_err(failed)?;
                let address = path.display().to_string();
                Ok(Listener { socket: ListenSocket::Unix(socket, SocketFile(path)), address, tcp: None })
            }
        }
    }

    /// The bound address: `ip:port` with the port that the system chose, or a path.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The bound address, if it is TCP.
    pub(crate) fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp
    }
}

fn bind_tcp(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Without it, a restart would have to wait for the old connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Removes the socket file of a server that was killed: one that nobody listens on.
fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is not a socket")),
        Err(_) => return Ok(()),
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens on it")),
        Err(_) => std::fs::remove_file(path),
    }
}
