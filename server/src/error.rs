//! Everything a client can be answered instead of a result: etcd's code, etcd's text, the HTTP status of its gateway.
//!
//! Clients match the texts, so they are etcd's to the letter where etcd has one (`docs/differences.md` lists the rest).

use axum::http::StatusCode;
use tally_mvcc::{ReadError, SweepError};

use crate::wire::DecodeError;

/// A gRPC status code; gRPC's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    Unknown = 2,
    InvalidArgument = 3,
    NotFound = 5,
    ResourceExhausted = 8,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
}

impl Code {
    /// The code as gRPC spells it in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::InvalidArgument => "InvalidArgument",
            Self::NotFound => "NotFound",
            Self::ResourceExhausted => "ResourceExhausted",
            Self::OutOfRange => "OutOfRange",
            Self::Unimplemented => "Unimplemented",
            Self::Internal => "Internal",
            Self::Unavailable => "Unavailable",
            Self::DataLoss => "DataLoss",
        }
    }

    /// The HTTP status that the gateway of etcd 3.6 gives to the code.
    fn status(self) -> StatusCode {
        match self {
            Self::InvalidArgument | Self::OutOfRange => StatusCode::BAD_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Self::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unknown | Self::Internal | Self::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Whether the request may have taken effect although it was answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It had none, and will have none.
    None,
    /// It may or may not have one, now or later: read before trying again.
    Unknown,
}

/// Why a request was not answered with a result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    #[error("etcdserver: key not found")]
    KeyNotFound,
    #[error("etcdserver: value is provided")]
    ValueProvided,
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    #[error("etcdserver: invalid sort option")]
    InvalidSortOption,
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    #[error("etcdserver: request is too large")]
    RequestTooLarge,
    /// A message over what etcd's gRPC layer lets through; the text is gRPC's.
    #[error("grpc: received message larger than max ({bytes} vs. {limit})")]
    MessageTooLarge { bytes: usize, limit: usize },
    /// A body longer than any message that is let through could be.
    #[error(
        "the request body is longer than {limit} bytes, which is what max-request-bytes allows with base64 and JSON around it"
    )]
    BodyTooLarge { limit: usize },
    #[error("the request body broke off: {detail}")]
    BodyBroken { detail: String },
    #[error("etcdserver: too many requests")]
    TooManyRequests,
    #[error("etcdserver: no leader")]
    NoLeader,
    #[error("etcdserver: leader changed")]
    LeaderChanged(Effect),
    #[error("etcdserver: server stopped")]
    Stopped(Effect),
    #[error("etcdserver: request timed out")]
    TimedOut(Effect),
    #[error("etcdserver: corrupt cluster")]
    CorruptCluster,
    #[error("{0}")]
    Decode(DecodeError),
    #[error("Not Found")]
    UnknownPath,
    #[error("Method Not Allowed")]
    WrongMethod,
    /// A view that the sweep did not wait for; another read gets a newer view.
    #[error("etcdserver: request timed out, waiting for the applied index took too long")]
    ViewOvertaken,
    /// The store could not be read.
    #[error("the store could not be read: {detail}")]
    Storage { detail: String },
    /// An answer that does not fit its request, or a task that died: a defect of this program.
    #[error("internal error: {what}; please report it")]
    Defect { what: &'static str },
}

impl ApiError {
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::EmptyKey
            | Self::KeyNotFound
            | Self::ValueProvided
            | Self::LeaseProvided
            | Self::TooManyOps
            | Self::DuplicateKey
            | Self::InvalidSortOption
            | Self::RequestTooLarge
            | Self::BodyBroken { .. }
            | Self::Decode(_) => Code::InvalidArgument,
            Self::Compacted | Self::FutureRevision => Code::OutOfRange,
            Self::LeaseNotFound | Self::UnknownPath => Code::NotFound,
            Self::NoSpace | Self::MessageTooLarge { .. } | Self::BodyTooLarge { .. } | Self::TooManyRequests => {
                Code::ResourceExhausted
            }
            Self::NoLeader | Self::LeaderChanged(_) | Self::Stopped(_) | Self::TimedOut(_) | Self::ViewOvertaken => {
                Code::Unavailable
            }
            Self::CorruptCluster => Code::DataLoss,
            Self::WrongMethod => Code::Unimplemented,
            Self::Storage { .. } => Code::Unknown,
            Self::Defect { .. } => Code::Internal,
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.code().status()
    }

    /// Whether a write that was answered so may still take effect.
    pub(crate) fn effect(&self) -> Effect {
        match self {
            Self::LeaderChanged(effect) | Self::Stopped(effect) | Self::TimedOut(effect) => *effect,
            _ => Effect::None,
        }
    }
}

impl From<DecodeError> for ApiError {
    fn from(error: DecodeError) -> Self {
        match error {
            // Every level uses at least one operation of the budget, so this is what a deeper one would be told.
            DecodeError::TooDeep => Self::TooManyOps,
            other => Self::Decode(other),
        }
    }
}

impl From<tally_mvcc::Rejection> for ApiError {
    fn from(rejection: tally_mvcc::Rejection) -> Self {
        use tally_mvcc::Rejection;
        match rejection {
            Rejection::Compacted { .. } => Self::Compacted,
            Rejection::FutureRevision { .. } => Self::FutureRevision,
            Rejection::KeyNotFound => Self::KeyNotFound,
            Rejection::LeaseNotFound(_) => Self::LeaseNotFound,
        }
    }
}

impl From<tally_apply::Rejection> for ApiError {
    fn from(rejection: tally_apply::Rejection) -> Self {
        use tally_apply::Rejection;
        match rejection {
            Rejection::Kv(rejection) => rejection.into(),
            Rejection::NoSpace => Self::NoSpace,
            Rejection::Corrupt => Self::CorruptCluster,
            Rejection::FeatureLevel { .. } => Self::Defect { what: "a client request was judged as a feature level" },
        }
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Rejected(rejection) => rejection.into(),
            ReadError::Overtaken { .. } => Self::ViewOvertaken,
            ReadError::NotReadOnly => Self::Defect { what: "a transaction that writes was read" },
            ReadError::Storage(source) => Self::Storage { detail: chain(&source) },
            ReadError::Corrupt(source) => Self::Storage { detail: chain(&source) },
        }
    }
}

impl From<SweepError> for ApiError {
    fn from(error: SweepError) -> Self {
        match error {
            SweepError::Storage(source) => Self::Storage { detail: chain(&source) },
            SweepError::Corrupt(source) => Self::Storage { detail: chain(&source) },
        }
    }
}

/// An error with its sources, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}
