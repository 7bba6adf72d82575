//! The cluster service: who is a member, and changing that.
//!
//! Ids, peer URLs and votes are the log's membership; names and client URLs are what members have published about
//! themselves. A member that has published nothing has not started yet.

use std::time::{Duration, SystemTime};

use tally_raftnode::{MemberChange, MemberError};
use tokio::time::timeout;

use crate::api::state::State;
use crate::config::Url;
use crate::error::ApiError;
use crate::identity::new_member_id;
use crate::join::texts;
use crate::wire::{Member, MemberAddMessage, MemberListMessage, MemberMessage, MemberUpdateMessage, Members};

/// How long a change is waited for on this member once it is made; what it is answered does not depend on it.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(1);
/// Peer URLs of a member, and bytes of them together: all members' stand in entries and frames whose size is bounded.
const URLS_MAX: usize = 64;
const URLS_BYTES_MAX: usize = 16 << 10;
/// Ids that are tried when the same URLs are added, removed and added again within one second.
const ID_ATTEMPTS: u64 = 8;

pub(crate) async fn list(state: &State, message: MemberListMessage) -> Result<Members, ApiError> {
    if message.linearizable {
        state.barrier().await?;
    }
    Ok(Members::new(members(state)))
}

pub(crate) async fn add(state: &State, message: MemberAddMessage) -> Result<Members, ApiError> {
    let urls = peer_urls(&message.peer_urls)?;
    let (peer_urls, is_learner) = (texts(&urls), message.is_learner);
    let mut attempt = 0;
    let (id, members) = loop {
        let id = new_member_id(&urls, SystemTime::now() + Duration::from_secs(attempt));
        let change = MemberChange::Add { id, peer_urls: peer_urls.clone(), is_learner };
        match make(state, change).await {
            Err(MemberError::IdExists { .. }) if attempt < ID_ATTEMPTS => attempt += 1,
            result => break (id, result?),
        }
    };
    let added = Member { id, name: String::new(), peer_urls, client_urls: Vec::new(), is_learner };
    Ok(Members { added: Some(added), members })
}

pub(crate) async fn remove(state: &State, message: MemberMessage) -> Result<Members, ApiError> {
    Ok(Members::new(make(state, MemberChange::Remove { id: message.id }).await?))
}

pub(crate) async fn update(state: &State, message: MemberUpdateMessage) -> Result<Members, ApiError> {
    let peer_urls = texts(&peer_urls(&message.peer_urls)?);
    Ok(Members::new(make(state, MemberChange::Update { id: message.id, peer_urls }).await?))
}

pub(crate) async fn promote(state: &State, message: MemberMessage) -> Result<Members, ApiError> {
    let promoted = make(state, MemberChange::Promote { id: message.id }).await.map_err(ApiError::from);
    state.metrics.promoted(promoted.as_ref().err());
    Ok(Members::new(promoted?))
}

/// URLs at which a member could be reached, sorted, each once.
fn peer_urls(given: &[String]) -> Result<Vec<Url>, ApiError> {
    if given.len() > URLS_MAX || given.iter().map(String::len).sum::<usize>() > URLS_BYTES_MAX {
        return Err(ApiError::BadMemberUrls);
    }
    let parse = |text: &String| Url::parse(text).ok().filter(|url| url.check_peer().is_ok());
    let mut urls = given.iter().map(parse).collect::<Option<Vec<Url>>>().ok_or(ApiError::BadMemberUrls)?;
    urls.sort();
    urls.dedup();
    if urls.is_empty() { Err(ApiError::BadMemberUrls) } else { Ok(urls) }
}

/// Makes a change, after those of others, which the node waits for. The members after it, as far as they are known
/// here.
async fn make(state: &State, change: MemberChange) -> Result<Vec<Member>, MemberError> {
    state.node.change_members(change.clone()).await?;
    if !matches!(change, MemberChange::Remove { id } if id == state.member_id) {
        // So that what is asked here next sees it. Made it is in any case.
        if let Ok(Err(error)) = timeout(FOLLOW_TIMEOUT, state.node.read_barrier()).await {
            tracing::debug!(%error, "answering a membership change before it is applied here");
        }
    }
    let mut members = members(state);
    apply(&mut members, change);
    Ok(members)
}

/// The effect of a change that this member may not have applied yet. Changes nothing if it has.
fn apply(members: &mut Vec<Member>, change: MemberChange) {
    match change {
        MemberChange::Add { id, peer_urls, is_learner } => {
            if members.iter().all(|member| member.id != id) {
                members.push(Member { id, name: String::new(), peer_urls, client_urls: Vec::new(), is_learner });
                members.sort_by_key(|member| member.id);
            }
        }
        MemberChange::Remove { id } => members.retain(|member| member.id != id),
        MemberChange::Update { id, peer_urls } => {
            members
                .iter_mut()
                .filter(|member| member.id == id)
                .for_each(|member| member.peer_urls.clone_from(&peer_urls));
        }
        MemberChange::Promote { id } => {
            members.iter_mut().filter(|member| member.id == id).for_each(|member| member.is_learner = false);
        }
    }
}

/// The members by id, as applied here.
fn members(state: &State) -> Vec<Member> {
    let published = state.reads().members();
    let mut members: Vec<Member> = state
        .node
        .members()
        .into_iter()
        .map(|peer| {
            let record = published.iter().find(|record| record.id == peer.id);
            Member {
                id: peer.id,
                name: record.map(|record| record.name.clone()).unwrap_or_default(),
                peer_urls: peer.peer_urls,
                client_urls: record.map(|record| record.client_urls.clone()).unwrap_or_default(),
                is_learner: peer.is_learner,
            }
        })
        .collect();
    members.sort_by_key(|member| member.id);
    members
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn urls(given: &[&str]) -> Result<Vec<String>, ApiError> {
        peer_urls(&given.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>()).map(|urls| texts(&urls))
    }

    #[test]
    fn peer_urls_are_checked_sorted_and_single() {
        assert_eq!(urls(&["http://h:2", "http://h:1", "http://h:2"]).unwrap(), ["http://h:1", "http://h:2"]);
        for bad in [&[][..], &["nonsense"], &["http://h:1", ""], &["https://h:1"], &["unix://s"], &["http://h:1/x"]] {
            assert!(matches!(urls(bad), Err(ApiError::BadMemberUrls)), "{bad:?}");
        }
    }

    #[test]
    fn a_change_is_shown_once_whether_applied_here_or_not() {
        let member = |id, is_learner| Member {
            id,
            name: String::new(),
            peer_urls: vec![format!("http://h:{id}")],
            client_urls: Vec::new(),
            is_learner,
        };
        let mut members = vec![member(1, false), member(3, false)];
        for _ in 0..2 {
            let add = MemberChange::Add { id: 2, peer_urls: vec!["http://h:2".into()], is_learner: true };
            apply(&mut members, add);
            assert_eq!(members, [member(1, false), member(2, true), member(3, false)]);
        }
        apply(&mut members, MemberChange::Promote { id: 2 });
        assert!(!members[1].is_learner);
        apply(&mut members, MemberChange::Update { id: 2, peer_urls: vec!["http://h:9".into()] });
        assert_eq!(members[1].peer_urls, ["http://h:9"]);
        apply(&mut members, MemberChange::Remove { id: 2 });
        assert_eq!(members, [member(1, false), member(3, false)]);
    }
}
