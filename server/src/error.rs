//! Everything a client can be answered instead of a result: etcd's code, etcd's text, the HTTP status of its gateway.
//!
//! Clients match the texts, so they are etcd's to the letter where etcd has one (`docs/differences.md` lists the rest).

use axum::http::StatusCode;
use tally_backend::StorageError;
use tally_mvcc::{ReadError, SweepError};
use tally_raftnode::MemberError;

use crate::grpc::ProtocolError;
use crate::leadership::Cause;
use crate::wire::DecodeError;

/// A gRPC status code; gRPC's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    Canceled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
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
            Self::Canceled => "Canceled",
            Self::Unknown => "Unknown",
            Self::InvalidArgument => "InvalidArgument",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::NotFound => "NotFound",
            Self::ResourceExhausted => "ResourceExhausted",
            Self::FailedPrecondition => "FailedPrecondition",
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
            // The client has closed its request: a status that nginx made up.
            Self::Canceled => StatusCode::from_u16(499).unwrap_or(StatusCode::REQUEST_TIMEOUT),
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Self::InvalidArgument | Self::FailedPrecondition | Self::OutOfRange => StatusCode::BAD_REQUEST,
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
    /// It had all of it, and only the answer is missing: do not try again.
    Done,
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
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    #[error("etcdserver: request is too large")]
    RequestTooLarge,
    /// A write is done by the time its answer turns out to be so large.
    #[error("the write was done, but its answer would take more than {limit} bytes: do not repeat it, read in pieces")]
    AnswerLeftOut { limit: usize },
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
    #[error("etcdserver: not leader")]
    NotLeader,
    #[error("etcdserver: bad leader transferee")]
    BadTransferee,
    #[error("etcdserver: request timed out, leader transfer took too long")]
    TransferTimedOut,
    #[error("etcdserver: rpc not supported for learner")]
    Learner,
    #[error("etcdserver: member not found")]
    MemberNotFound,
    #[error("etcdserver: member ID already exist")]
    MemberExists,
    #[error("etcdserver: Peer URLs already exists")]
    PeerUrlExists,
    #[error("etcdserver: given member URLs are invalid")]
    BadMemberUrls,
    #[error("etcdserver: re-configuration failed due to not enough started members")]
    NotEnoughStarted,
    #[error("etcdserver: can only promote a learner member")]
    NotALearner,
    #[error("etcdserver: can only promote a learner member which is in sync with leader")]
    LearnerNotReady,
    #[error("etcdserver: too many learner members in cluster")]
    TooManyLearners,
    #[error("etcdserver: unhealthy cluster")]
    Unhealthy,
    #[error("etcdserver: leader changed")]
    LeaderChanged(Effect),
    #[error("etcdserver: server stopped")]
    Stopped(Effect),
    #[error("etcdserver: request timed out{1}")]
    TimedOut(Effect, Cause),
    #[error("etcdserver: corrupt cluster")]
    CorruptCluster,
    /// The client's deadline is over.
    #[error("context deadline exceeded")]
    DeadlineExceeded(Effect),
    #[error("invalid grpc-timeout: {found}")]
    BadTimeout { found: String },
    #[error("etcdserver: request canceled")]
    Canceled,
    #[error("etcdserver: invalid client api version")]
    BadClientVersion,
    /// There are no users: this version has no authentication.
    #[error("etcdserver: authentication is not enabled")]
    AuthNotEnabled,
    #[error("mutex: session is expired")]
    SessionExpired,
    #[error("election: not leader")]
    ElectionNotLeader,
    #[error("election: no leader")]
    ElectionNoLeader,
    #[error("\"leader\" field must be provided")]
    NoLeaderField,
    /// Of a lock or an election: there etcd passes the text on, and not the code.
    #[error("{0}")]
    Unclassified(Box<ApiError>),
    #[error(transparent)]
    Grpc(#[from] ProtocolError),
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
            | Self::BadMemberUrls
            | Self::BodyBroken { .. }
            | Self::BadClientVersion
            | Self::BadTimeout { .. }
            | Self::Decode(_) => Code::InvalidArgument,
            Self::Compacted | Self::FutureRevision | Self::LeaseTtlTooLarge => Code::OutOfRange,
            Self::LeaseNotFound | Self::MemberNotFound | Self::UnknownPath => Code::NotFound,
            Self::NotLeader
            | Self::BadTransferee
            | Self::Learner
            | Self::LeaseExists
            | Self::MemberExists
            | Self::PeerUrlExists
            | Self::NotALearner
            | Self::LearnerNotReady
            | Self::TooManyLearners
            | Self::AuthNotEnabled => Code::FailedPrecondition,
            Self::NoSpace
            | Self::AnswerLeftOut { .. }
            | Self::MessageTooLarge { .. }
            | Self::BodyTooLarge { .. }
            | Self::TooManyRequests => Code::ResourceExhausted,
            Self::NoLeader
            | Self::LeaderChanged(_)
            | Self::Stopped(_)
            | Self::TimedOut(..)
            | Self::Unhealthy
            | Self::ViewOvertaken => Code::Unavailable,
            Self::CorruptCluster => Code::DataLoss,
            Self::WrongMethod => Code::Unimplemented,
            // The first has a code of its own in etcd's tables, which its server does not use.
            Self::NotEnoughStarted | Self::TransferTimedOut | Self::Storage { .. } => Code::Unknown,
            Self::SessionExpired
            | Self::ElectionNotLeader
            | Self::ElectionNoLeader
            | Self::NoLeaderField
            | Self::Unclassified(_) => Code::Unknown,
            Self::Defect { .. } => Code::Internal,
            Self::DeadlineExceeded(_) => Code::DeadlineExceeded,
            Self::Canceled => Code::Canceled,
            Self::Grpc(error) => error.code(),
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.code().status()
    }

    /// Whether a write that was answered so has taken effect, or may still do so.
    pub(crate) fn effect(&self) -> Effect {
        match self {
            Self::LeaderChanged(effect)
            | Self::Stopped(effect)
            | Self::TimedOut(effect, _)
            | Self::DeadlineExceeded(effect) => *effect,
            Self::AnswerLeftOut { .. } => Effect::Done,
            Self::Unclassified(error) => error.effect(),
            _ => Effect::None,
        }
    }

    /// The same, as a lock or an election tells it.
    pub(crate) fn unclassified(self) -> ApiError {
        if self.code() == Code::Unknown { self } else { Self::Unclassified(Box::new(self)) }
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

impl From<tally_lease::Rejection> for ApiError {
    fn from(rejection: tally_lease::Rejection) -> Self {
        use tally_lease::Rejection;
        match rejection {
            Rejection::NotFound(_) => Self::LeaseNotFound,
            Rejection::Exists(_) => Self::LeaseExists,
            Rejection::TtlTooLarge { .. } => Self::LeaseTtlTooLarge,
        }
    }
}

impl From<tally_apply::Rejection> for ApiError {
    fn from(rejection: tally_apply::Rejection) -> Self {
        use tally_apply::Rejection;
        match rejection {
            Rejection::Kv(rejection) => rejection.into(),
            Rejection::Lease(rejection) => rejection.into(),
            // Only the jobs of a leader propose what counts in one term alone.
            Rejection::OtherTerm { .. } => Self::LeaderChanged(Effect::None),
            Rejection::RemovesTooMuch { .. } => Self::RequestTooLarge,
            Rejection::NoSpace => Self::NoSpace,
            Rejection::Corrupt => Self::CorruptCluster,
            Rejection::FeatureLevel { .. } => Self::Defect { what: "a client request was judged as a feature level" },
            Rejection::MemberRemoved { .. } | Rejection::MemberDirectory { .. } => {
                Self::Defect { what: "a client request was judged as a member's record" }
            }
        }
    }
}

impl From<MemberError> for ApiError {
    fn from(error: MemberError) -> Self {
        match error {
            MemberError::NotFound { .. } => Self::MemberNotFound,
            MemberError::IdExists { .. } => Self::MemberExists,
            MemberError::PeerUrlExists { .. } => Self::PeerUrlExists,
            MemberError::TooManyLearners { .. } => Self::TooManyLearners,
            MemberError::NotLearner { .. } => Self::NotALearner,
            MemberError::LearnerNotReady { .. } => Self::LearnerNotReady,
            MemberError::NotEnoughStarted => Self::NotEnoughStarted,
            MemberError::Unhealthy => Self::Unhealthy,
            // Both are waited out first, so the time is over, and nothing was changed.
            MemberError::Busy | MemberError::NoLeader => Self::TimedOut(Effect::None, Cause::Unknown),
            MemberError::Unclear => Self::LeaderChanged(Effect::Unknown),
            MemberError::Stopped | MemberError::Fatal(_) => Self::Stopped(Effect::Unknown),
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

impl From<StorageError> for ApiError {
    fn from(error: StorageError) -> Self {
        Self::Storage { detail: chain(&error) }
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
