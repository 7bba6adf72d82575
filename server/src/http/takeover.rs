//! A connection that is taken over from HTTP, for WebSocket.

use std::sync::Arc;

use super::connections::{Order, Place};

/// The right to go on with a connection when HTTP has let go of it. It stands among the extensions of a request that asks
/// for it.
#[derive(Clone)]
pub(crate) struct Takeover(Arc<Place>);

impl Takeover {
    pub(super) fn new(place: &Arc<Place>) -> Takeover {
        Takeover(Arc::clone(place))
    }

    /// Does `work` on the connection, which counts among all as before: it is cut off when it stalls or the server stops.
    pub(crate) async fn run(self, work: impl Future<Output = ()>) {
        let connection = &self.0.connection;
        // Like a response that goes on: no limit but for a client that does not read.
        let mut open = connection.begin();
        open.respond();
        let cut_off = async {
            while !matches!(connection.order(), Order::Drain | Order::Close) {
                connection.wake.notified().await;
            }
        };
        tokio::select! {
            () = work => {}
            () = cut_off => {}
        }
    }
}
