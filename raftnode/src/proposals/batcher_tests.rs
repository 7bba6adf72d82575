//! How batches that consensus has are answered.

#![allow(clippy::unwrap_used)]

use futures_util::stream;
use openraft::errors::ForwardToLeader;

use super::*;

fn refused() -> Result<WriteResult<TypeConfig>, Fatal<TypeConfig>> {
    Ok(Err(ClientWriteError::ForwardToLeader(ForwardToLeader::empty())))
}

/// Their channel has room for a few frames: told one by one, the rest would break it, and nobody would know of any.
#[tokio::test]
async fn what_is_refused_of_others_is_told_together_and_at_once() {
    const MANY: u64 = 1_000;
    let shared = Arc::new(Shared::new(0, 0, 0, 0, 0));
    let (waiting, _again) = Waiting::new(7, Arc::clone(&shared));
    let channels: Vec<_> = (0..2).map(|_| mpsc::channel(1)).collect();
    let others = channels.iter().map(|(out, _)| Other { refused: RefusedSender::to(out), untold: Vec::new() });
    let (proceed, held) = oneshot::channel::<()>();
    let late = stream::once(async move {
        drop(held.await);
        refused()
    });
    let results = stream::iter((0..MANY).map(|_| refused())).chain(late);
    let batch = Batch {
        term: 2,
        results: Box::pin(results),
        askers: (0..=MANY).map(|seq| Asker::Other(usize::from(seq % 2 == 1), seq)).collect(),
        others: others.collect(),
        refused: false,
    };
    let (mut told, mut in_flight) = (channels, VecDeque::from([batch]));
    // Whose entry is still under way does not keep the others waiting; and what was seen is not lost when this is dropped.
    assert!(Batcher::answer_next(&mut in_flight, &waiting, &shared).now_or_never().is_none());
    let frames: Vec<usize> = told.iter_mut().map(|(_, told)| told.try_recv().unwrap().len()).collect();
    assert_eq!(frames[0], frames[1]);
    assert!(frames[0] >= 8 * MANY as usize / 2, "{} bytes", frames[0]);
    drop(proceed);
    assert!(matches!(Batcher::answer_next(&mut in_flight, &waiting, &shared).await, BatchEnd::Refused));
    assert!(told[0].1.try_recv().is_ok() && told[1].1.try_recv().is_err());
    assert!(in_flight.is_empty());
}
