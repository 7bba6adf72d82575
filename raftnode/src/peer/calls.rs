//! The answering side of calls.

use std::sync::Arc;

use bytes::{BufMut, Bytes};
use tokio::sync::{Semaphore, mpsc};

use super::body::Input;
use super::frame::{Address, Frame, Kind, encode};
use super::serve::Served;
use super::{Host, messages};
use crate::codec::CodecError;

/// Calls of one peer that are carried out at the same time; while there are that many, no further one is read.
const CALLS_MAX: usize = 64;
/// Bytes that most answers fit into.
const ANSWER_BYTES: usize = 128;

/// Answers calls until the channel ends.
pub(super) async fn serve(mut served: Served) {
    let places = Arc::new(Semaphore::new(CALLS_MAX));
    while let Some(frame) = served.next().await {
        // It may have been removed since it said Hello.
        if served.refused() {
            return;
        }
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (host, out, address) = (Arc::clone(&served.host), served.out.downgrade(), served.address);
        match answer(host, address, frame) {
            Ok(answer) => {
                // Not tied to the channel: a change of the membership is finished whoever still waits for it.
                tokio::spawn(async move {
                    if let Some(frame) = answer.await {
                        send(&out, frame).await;
                    }
                    drop(place);
                });
            }
            Err(error) => return served.complain(&error),
        }
    }
}

/// Answers, unless the channel is no longer served: then the caller knows that there is no answer.
async fn send(out: &mpsc::WeakSender<Bytes>, frame: Bytes) {
    if let Some(out) = out.upgrade() {
        let _ = out.send(frame).await;
    }
}

/// Reads a call, and returns what carries it out: the answer, or nothing if this member cannot say anything.
fn answer(host: Arc<dyn Host>, address: Address, frame: Frame) -> Result<super::BoxFuture<Option<Bytes>>, CodecError> {
    let mut input = Input::new("call", frame.body);
    let id = input.u64()?;
    let reply = move |kind: Kind, body: &dyn Fn(&mut bytes::BytesMut)| {
        encode(address, kind, ANSWER_BYTES, |out| {
            out.put_u64(id);
            body(out);
        })
    };
    match frame.kind {
        kind @ (Kind::Vote | Kind::PreVote) => {
            let (request, raft) = (messages::vote_request(input)?, host.raft());
            Ok(Box::pin(async move {
                let voted = if kind == Kind::Vote { raft.vote(request).await } else { raft.pre_vote(request).await };
                let response = voted.ok()?;
                Some(reply(Kind::Voted, &|out| messages::put_vote_response(out, &response)))
            }))
        }
        Kind::Transfer => {
            let (request, raft) = (messages::transfer(input)?, host.raft());
            Ok(Box::pin(async move {
                let response = raft.handle_transfer_leader(request).await.ok()?;
                Some(reply(Kind::Transferred, &|out| messages::put_transferred(out, &response)))
            }))
        }
        Kind::ReadIndex => {
            input.end()?;
            let reading = host.read_index();
            Ok(Box::pin(async move {
                let result = reading.await;
                Some(reply(Kind::ReadAt, &|out| messages::put_read_at(out, &result)))
            }))
        }
        Kind::Ask => {
            let (kind, question) = messages::ask(input)?;
            let asking = host.ask(kind, question);
            Ok(Box::pin(async move {
                let answer = asking.await;
                Some(reply(Kind::Answer, &|out| messages::put_answer(out, answer.as_ref())))
            }))
        }
        Kind::Change => {
            let changing = host.change_members(messages::change(input)?);
            Ok(Box::pin(async move {
                let result = changing.await;
                Some(reply(Kind::Changed, &|out| messages::put_changed(out, &result)))
            }))
        }
        _ => Err(input.malformed("a frame that is no call")),
    }
}
