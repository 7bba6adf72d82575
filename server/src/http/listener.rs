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

/// An address that is taken, so that nobody else gets it; whoever connects to it is refused until [`Bound::listen`].
pub(crate) struct Bound {
    socket: BoundSocket,
    url: Url,
    address: String,
    tcp: Option<SocketAddr>,
}

enum BoundSocket {
    Tcp(Socket),
    /// With the guard that removes the socket's file.
    Unix(UnixListener, SocketFile),
}

/// A listening socket; connections wait in the kernel's queue until it is served.
pub(crate) struct Listener {
    pub(super) socket: ListenSocket,
    address: String,
}

pub(super) enum ListenSocket {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// Removes the file of a Unix socket when dropped.
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Bound {
    /// Takes the address of a URL. A Unix socket listens at once.
    pub(crate) fn new(url: &Url, reuse_port: bool) -> Result<Bound, BindError> {
        let failed = |source| BindError::Listen { url: url.clone(), source };
        let (socket, address, tcp) = match url.endpoint()? {
            Endpoint::Tcp(address) => {
                let socket = bind_tcp(address, reuse_port).map_err(failed)?;
                let bound = socket.local_addr().map_err(failed)?.as_socket();
                let bound = bound.ok_or_else(|| failed(io::Error::other("the socket has no address")))?;
                (BoundSocket::Tcp(socket), bound.to_string(), Some(bound))
            }
            Endpoint::Unix(path) => {
                remove_stale(&path).map_err(failed)?;
                let socket = UnixListener::bind(&path).map_err(failed)?;
                let address = path.display().to_string();
                (BoundSocket::Unix(socket, SocketFile(path)), address, None)
            }
        };
        Ok(Bound { socket, url: url.clone(), address, tcp })
    }

    /// The bound address, if it is TCP, with the port that the system chose.
    pub(crate) fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp
    }

    /// Lets connections in. Must be called inside a tokio runtime.
    pub(crate) fn listen(self) -> Result<Listener, BindError> {
        let Bound { socket, url, address, .. } = self;
        let socket = match socket {
            BoundSocket::Tcp(socket) => socket
                .listen(BACKLOG)
                .and_then(|()| TcpListener::from_std(socket.into()))
                .map(ListenSocket::Tcp)
                .map_err(|source| BindError::Listen { url, source })?,
            BoundSocket::Unix(socket, file) => ListenSocket::Unix(socket, file),
        };
        Ok(Listener { socket, address })
    }
}

impl Listener {
    /// The bound address: `ip:port` with the port that the system chose, or a path.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}

fn bind_tcp(address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Without it, a restart would have to wait for the old connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
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
