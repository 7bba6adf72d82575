//! What the transport reports to whoever counts.

use std::time::Duration;

/// Is told what happens between this member and its peers. Called on the tasks that carry the traffic: must be quick.
pub trait NetworkObserver: Send + Sync {
    /// Something has happened.
    fn observe(&self, event: NetworkEvent);
}

/// What has happened between this member and a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetworkEvent {
    /// Bytes of frames were handed to a connection.
    Sent {
        /// The peer.
        to: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// Bytes of frames came in.
    Received {
        /// The peer.
        from: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// The peer could not be reached, or what was sent was lost with its connection.
    SendFailed {
        /// The peer.
        to: u64,
    },
    /// What came in could not be understood.
    ReceiveFailed {
        /// The peer.
        from: u64,
    },
    /// A request that needs no disk was answered.
    RoundTrip {
        /// The peer.
        to: u64,
        /// From the request to its answer.
        elapsed: Duration,
    },
    /// The first channel to a peer was opened.
    Connected {
        /// The peer.
        to: u64,
    },
    /// The last channel to a peer was closed.
    Disconnected {
        /// The peer.
        to: u64,
    },
    /// A heartbeat was not answered in time.
    HeartbeatFailed {
        /// The peer.
        to: u64,
    },
    /// A snapshot is being sent.
    SnapshotSendStarted {
        /// The peer.
        to: u64,
    },
    /// A snapshot was sent and installed.
    SnapshotSent {
        /// The peer.
        to: u64,
        /// How long it took.
        elapsed: Duration,
    },
    /// A snapshot was not sent or not installed.
    SnapshotSendFailed {
        /// The peer.
        to: u64,
    },
    /// A snapshot is being received.
    SnapshotReceiveStarted {
        /// The peer.
        from: u64,
    },
    /// A snapshot was received and installed.
    SnapshotReceived {
        /// The peer.
        from: u64,
        /// How long it took.
        elapsed: Duration,
    },
    /// A snapshot was not received or not installed.
    SnapshotReceiveFailed {
        /// The peer.
        from: u64,
    },
}
