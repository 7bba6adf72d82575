//! The URLs of flags: where to listen, what to advertise.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use thiserror::Error;

/// Why a text is not a usable URL.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum UrlError {
    /// The scheme is missing or is none that this server knows.
    #[error("URL {0:?} must begin with http://, https:// or unix://")]
    Scheme(String),
    /// There is no `host:port`.
    #[error("URL {0:?} must name a host and a port, as in http://127.0.0.1:2379")]
    Address(String),
    /// A path, query or fragment follows the address.
    #[error("URL {0:?} must not have a path")]
    Path(String),
    /// A listening URL names a host instead of an address.
    #[error("URL {0:?}: expected an IP address or localhost to listen on, not a host name")]
    Name(String),
    /// TLS was asked for.
    #[error("URL {0:?}: TLS is not in this version; listen on http:// and put a TLS proxy in front")]
    Tls(String),
    /// Peers are reached over TCP only.
    #[error("URL {0:?}: peers are reached over TCP; use http://host:port")]
    NotTcp(String),
}

/// How to reach the address of a [`Url`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheme {
    /// Plain TCP.
    Http,
    /// TLS over TCP.
    Https,
    /// A Unix domain socket.
    Unix,
    /// TLS over a Unix domain socket.
    Unixs,
}

/// A URL without a path, as in etcd's flags.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Url {
    scheme: Scheme,
    /// `host:port`, or the path of a socket.
    address: String,
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Url {
    /// Reads `scheme://host:port`, or `unix://path`.
    pub fn parse(text: &str) -> Result<Url, UrlError> {
        let text = text.trim();
        let (scheme, address) = text.split_once("://").ok_or_else(|| UrlError::Scheme(text.to_owned()))?;
        let scheme = match scheme {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "unix" => Scheme::Unix,
            "unixs" => Scheme::Unixs,
            _ => return Err(UrlError::Scheme(text.to_owned())),
        };
        match scheme {
            Scheme::Unix | Scheme::Unixs => {
                if address.is_empty() {
                    return Err(UrlError::Address(text.to_owned()));
                }
            }
            Scheme::Http | Scheme::Https => {
                if address.contains(['/', '?', '#', '@']) {
                    return Err(UrlError::Path(text.to_owned()));
                }
                let (host, port) = split(address).ok_or_else(|| UrlError::Address(text.to_owned()))?;
                if host.is_empty() || port.is_none() {
                    return Err(UrlError::Address(text.to_owned()));
                }
            }
        }
        Ok(Url { scheme, address: address.to_owned() })
    }

    /// Reads a comma-separated list.
    pub fn parse_list(text: &str) -> Result<Vec<Url>, UrlError> {
        text.split(',').map(str::trim).filter(|url| !url.is_empty()).map(Url::parse).collect()
    }

    /// The scheme.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Whether other members could reach a member here: over plain TCP.
    pub(crate) fn check_peer(&self) -> Result<(), UrlError> {
        match self.scheme {
            Scheme::Http => Ok(()),
            Scheme::Https => Err(UrlError::Tls(self.to_string())),
            Scheme::Unix | Scheme::Unixs => Err(UrlError::NotTcp(self.to_string())),
        }
    }

    /// Whether this is an address to listen on, everywhere, that nobody can be sent to: `0.0.0.0` or `[::]`.
    pub(crate) fn is_unspecified(&self) -> bool {
        let host = split(&self.address).filter(|_| matches!(self.scheme, Scheme::Http | Scheme::Https));
        host.and_then(|(host, _)| host.parse::<IpAddr>().ok()).is_some_and(|address| address.is_unspecified())
    }

    /// Where to listen for this URL.
    pub(crate) fn endpoint(&self) -> Result<Endpoint, UrlError> {
        match self.scheme {
            Scheme::Https | Scheme::Unixs => Err(UrlError::Tls(self.to_string())),
            Scheme::Unix => Ok(Endpoint::Unix(PathBuf::from(&self.address))),
            Scheme::Http => {
                let (host, port) = split(&self.address).ok_or_else(|| UrlError::Address(self.to_string()))?;
                let port = port.ok_or_else(|| UrlError::Address(self.to_string()))?;
                let ip = match host {
                    "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
                    _ => host.parse().map_err(|_| UrlError::Name(self.to_string()))?,
                };
                Ok(Endpoint::Tcp(SocketAddr::new(ip, port)))
            }
        }
    }
}

/// `host:port` or `[host]:port`; the port is `None` when it is no number.
fn split(address: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    Some((host, port.parse().ok()))
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Unix => "unix",
            Scheme::Unixs => "unixs",
        };
        write!(f, "{scheme}://{}", self.address)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn urls_are_read_and_printed_unchanged() {
        for text in ["http://127.0.0.1:2379", "http://localhost:0", "http://[::1]:2379", "unix:///tmp/s", "https://h:1"]
        {
            assert_eq!(Url::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Url::parse_list(" http://a:1 ,http://b:2,").unwrap().len(), 2);
    }

    #[test]
    fn urls_that_cannot_work_are_refused() {
        for text in [
            "",
            "127.0.0.1:2379",
            "http://127.0.0.1",
            "http://:2379",
            "http://h:p",
            "http://h:1/x",
            "ftp://h:1",
            "unix://",
        ] {
            assert!(Url::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_addresses_can_be_listened_on() {
        let endpoint = |text| Url::parse(text).unwrap().endpoint();
        assert_eq!(endpoint("http://localhost:2379").unwrap(), Endpoint::Tcp("127.0.0.1:2379".parse().unwrap()));
        assert_eq!(endpoint("http://[::1]:1").unwrap(), Endpoint::Tcp("[::1]:1".parse().unwrap()));
        assert_eq!(endpoint("unix:///run/t").unwrap(), Endpoint::Unix("/run/t".into()));
        assert!(matches!(endpoint("http://example.org:1"), Err(UrlError::Name(_))));
        assert!(matches!(endpoint("https://127.0.0.1:1"), Err(UrlError::Tls(_))));
    }
}
