//! The generated gRPC clients, connected to a running server.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::{PATIENCE, Tally};

/// Messages and clients as a stranger would generate them.
#[allow(warnings, clippy::all, clippy::pedantic)]
pub mod proto {
    pub mod mvccpb {
        include!(concat!(env!("OUT_DIR"), "/tests/mvccpb.rs"));
    }
    pub mod etcdserverpb {
        include!(concat!(env!("OUT_DIR"), "/tests/etcdserverpb.rs"));
    }
    pub mod v3lockpb {
        include!(concat!(env!("OUT_DIR"), "/tests/v3lockpb.rs"));
    }
    pub mod v3electionpb {
        include!(concat!(env!("OUT_DIR"), "/tests/v3electionpb.rs"));
    }
    pub mod health {
        include!(concat!(env!("OUT_DIR"), "/tests/grpc.health.v1.rs"));
    }
}

use pb::cluster_client::ClusterClient;
use pb::kv_client::KvClient;
use pb::maintenance_client::MaintenanceClient;
pub use proto::etcdserverpb as pb;

/// Runs a test that awaits; it fails if it takes longer than anything should.
pub fn block_on<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, test).await.expect("the test takes too long") })
}

impl Tally {
    /// A connection, made when it is first used.
    pub fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect_lazy()
    }
}

/// A connection that keeps no deadlines itself, as tonic's own does: what a header says of one is for the server alone.
#[derive(Clone)]
pub struct Direct(SendRequest<Body>);

impl Direct {
    pub async fn connect(tally: &Tally) -> Direct {
        let socket = TcpStream::connect(&tally.address).await.unwrap();
        let (send, connection) = handshake(TokioExecutor::new(), TokioIo::new(socket)).await.unwrap();
        tokio::spawn(connection);
        Direct(send)
    }

    pub async fn kv(tally: &Tally) -> KvClient<Direct> {
        KvClient::with_origin(Direct::connect(tally).await, origin(tally))
    }
}

/// What a client over such a connection has to be told, which a channel knows.
pub fn origin(tally: &Tally) -> http::Uri {
    format!("http://{}", tally.address).parse().unwrap()
}

impl Service<http::Request<Body>> for Direct {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// The clients that most tests need, over one connection.
#[derive(Clone)]
pub struct Clients {
    pub channel: Channel,
    pub kv: KvClient<Channel>,
    pub cluster: ClusterClient<Channel>,
    pub maintenance: MaintenanceClient<Channel>,
}

pub fn clients(tally: &Tally) -> Clients {
    let channel = tally.channel();
    Clients {
        kv: KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX),
        cluster: ClusterClient::new(channel.clone()),
        maintenance: MaintenanceClient::new(channel.clone()),
        channel,
    }
}

pub fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

pub fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

/// Everything from the key on.
pub fn from(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { range_end: "\0".into(), ..get(key) }
}

/// The call must be refused so.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, text: &str) {
    let status = result.expect_err(text);
    assert_eq!((status.code(), status.message()), (code, text));
}
