//! The load generator of the gRPC rows: closed loops on a few connections, in one thread, no failure forgiven.

use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::{JoinSet, LocalSet};

use super::calls::Call;
use crate::bench::hist::Histogram;
use crate::bench::load::{Length, Measured};
use crate::error::{Error, Result};
use crate::grpc::{Channel, Stream};

/// How long no answer at all may arrive before a measurement is given up.
const SILENCE: Duration = Duration::from_secs(30);

/// Where the next call comes from.
pub(crate) type Source = Box<dyn FnMut() -> Call>;

/// How clients are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clients {
    /// Closed loops, spread evenly over the connections.
    pub(crate) clients: usize,
    /// Connections, spread evenly over the addresses.
    pub(crate) connections: usize,
    /// Whether each client sends its messages on one stream of its own, instead of making calls.
    pub(crate) streams: bool,
}

/// Runs closed loops; `edge` is called when the measured part begins and when it ends.
pub(crate) fn run(
    addresses: &[SocketAddr],
    arranged: Clients,
    length: Length,
    source: Source,
    mut edge: impl FnMut() -> Result<()>,
) -> Result<Measured> {
    let limit = match length {
        Length::Requests(count) => count,
        Length::Time { .. } => u64::MAX,
    };
    let run = Run { source, latency: Histogram::new(), answered: 0, asked: 0, limit, measuring: false };
    let run = Rc::new(RefCell::new(run));
    block_on(async {
        let channels = connect(addresses, arranged.connections).await?;
        let mut loops = JoinSet::new();
        for channel in channels.iter().cycle().take(arranged.clients) {
            loops.spawn_local(closed_loop(Rc::clone(&run), channel.clone(), arranged.streams));
        }
        let took = match length {
            Length::Time { warmup, window } => {
                undisturbed(&run, &mut loops, warmup).await?;
                edge()?;
                run.borrow_mut().measuring = true;
                let begun = Instant::now();
                undisturbed(&run, &mut loops, window).await?;
                run.borrow_mut().measuring = false;
                let took = begun.elapsed();
                edge()?;
                took
            }
            Length::Requests(_) => {
                edge()?;
                run.borrow_mut().measuring = true;
                let begun = Instant::now();
                // Each ends when there is nothing more to ask.
                while let Some(ended) = loops.join_next().await {
                    ended.map_err(|_| Error::Check("a client panicked".to_owned()))??;
                }
                let took = begun.elapsed();
                edge()?;
                took
            }
        };
        let run = run.borrow();
        Ok(Measured { latency: run.latency.clone(), took, answered: run.answered })
    })
}

/// Runs a future, and the local tasks that it spawns, on this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Error::network("make an async runtime"))?;
    LocalSet::new().block_on(&runtime, future)
}

/// Connections, spread evenly over the addresses.
pub(crate) async fn connect(addresses: &[SocketAddr], connections: usize) -> Result<Vec<Channel>> {
    let mut channels = Vec::with_capacity(connections);
    for address in addresses.iter().cycle().take(connections) {
        channels.push(Channel::connect(*address).await?);
    }
    Ok(channels)
}

/// Waits, but for no longer than until a client fails or none is answered any more.
async fn undisturbed(run: &RefCell<Run>, loops: &mut JoinSet<Result<()>>, time: Duration) -> Result<()> {
    let end = tokio::time::Instant::now() + time;
    loop {
        let (now, answered) = (tokio::time::Instant::now(), run.borrow().answered);
        let until = end.min(now + SILENCE);
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(until) => {}
            ended = loops.join_next() => match ended {
                Some(ended) => ended.map_err(|_| Error::Check("a client panicked".to_owned()))??,
                None => return Err(Error::Check("there are no clients".to_owned())),
            },
        }
        if until == end {
            return Ok(());
        }
        if run.borrow().answered == answered {
            return Err(Error::Answer(format!("nothing has been answered for {SILENCE:?}")));
        }
    }
}

/// What all clients share.
struct Run {
    source: Source,
    latency: Histogram,
    answered: u64,
    asked: u64,
    limit: u64,
    measuring: bool,
}

impl Run {
    /// The next call, unless there are to be no more.
    fn ask(&mut self) -> Option<Call> {
        (self.asked < self.limit).then(|| {
            self.asked += 1;
            (self.source)()
        })
    }
}

async fn closed_loop(run: Rc<RefCell<Run>>, mut channel: Channel, streams: bool) -> Result<()> {
    let (mut answer, mut stream): (Vec<u8>, Option<Stream>) = (Vec::new(), None);
    loop {
        let Some(Call { path, message, right }) = run.borrow_mut().ask() else { return Ok(()) };
        let begun = Instant::now();
        if !streams {
            channel.call(path, message, &mut answer).await?;
        } else {
            if stream.is_none() {
                stream = Some(channel.open(path).await?);
            }
            let Some(stream) = &mut stream else { return Ok(()) };
            stream.send(message)?;
            answer.clear();
            answer.extend_from_slice(stream.next().await?);
        }
        let took = begun.elapsed();
        if !right(&answer) {
            return Err(Error::Answer(format!("{path} was answered with {} bytes: {answer:?}", answer.len())));
        }
        let mut run = run.borrow_mut();
        run.answered += 1;
        if run.measuring {
            run.latency.add(took);
        }
    }
}
