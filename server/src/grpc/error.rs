//! What can be wrong with a call before its meaning is looked at, in the words of grpc-go, which etcd's clients know.

use crate::error::Code;

/// Why a call is not gRPC as it is spoken here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProtocolError {
    #[error("invalid gRPC request content-type {found:?}")]
    ContentType { found: String },
    #[error("Received a HEADERS frame with :method {found:?} which should be POST")]
    WrongMethod { found: String },
    #[error("malformed method name: {path:?}")]
    MalformedMethod { path: String },
    #[error("unknown service {service}")]
    UnknownService { service: String },
    #[error("unknown method {method} for service {service}")]
    UnknownMethod { method: String, service: String },
    /// Asked of the health service.
    #[error("unknown service")]
    NoSuchService,
    #[error("RangeStream does not support custom sort orders")]
    StreamSorted,
    #[error("RangeStream does not support revision filters")]
    StreamFiltered,
    #[error("malformed grpc-timeout: {found:?} is not a number of at most 8 digits and a unit")]
    Timeout { found: String },
    #[error("grpc: Decompressor is not installed for grpc-encoding {found:?}")]
    Encoding { found: String },
    #[error("grpc: failed to decompress the received message: {0}")]
    Inflate(std::io::Error),
    #[error("grpc: received message after decompression larger than max {limit}")]
    InflatedTooLarge { limit: usize },
    #[error("grpc: compressed flag set with identity or empty encoding")]
    Compressed,
    #[error("grpc: received unexpected payload format {found}")]
    PayloadFormat { found: u8 },
    /// The request ended inside a message.
    #[error("unexpected EOF")]
    Truncated,
    /// The request ended before a message, or inside of what stands before it.
    #[error("EOF")]
    NoMessage,
    #[error("cardinality violation: received multiple request messages for non-client-streaming RPC")]
    SeveralMessages,
    #[error("grpc: error unmarshalling request: {0}")]
    Undecodable(#[from] prost::DecodeError),
    #[error("grpc: trying to send message larger than max ({bytes} vs. {limit})")]
    AnswerTooLarge { bytes: usize, limit: usize },
}

impl ProtocolError {
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::ContentType { .. } => Code::InvalidArgument,
            Self::NoSuchService => Code::NotFound,
            Self::MalformedMethod { .. }
            | Self::UnknownService { .. }
            | Self::UnknownMethod { .. }
            | Self::StreamSorted
            | Self::StreamFiltered
            | Self::Encoding { .. } => Code::Unimplemented,
            Self::WrongMethod { .. }
            | Self::Timeout { .. }
            | Self::Compressed
            | Self::Inflate(_)
            | Self::PayloadFormat { .. }
            | Self::SeveralMessages
            | Self::Undecodable(_) => Code::Internal,
            Self::Truncated | Self::NoMessage => Code::Unknown,
            Self::AnswerTooLarge { .. } | Self::InflatedTooLarge { .. } => Code::ResourceExhausted,
        }
    }
}
