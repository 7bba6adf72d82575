//! Who a member is when it starts: from its data, from the flags, or from the cluster that it joins.
//!
//! | data | `--initial-cluster-state` | it is |
//! |---|---|---|
//! | found | `new` | who the data says, if the flags that were given agree |
//! | found | `existing` | who the data says: its URLs may have been changed since |
//! | none | `new` | a founder, unless the cluster runs already and knows it |
//! | none | `existing` | the member that was added to the cluster under its peer URLs and has not started yet |

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tally_raftnode::{
    ClusterView, DiscoverError, Founder, OpenError, PeerMember, StorageOptions, StoredIdentity, discover,
    stored_identity,
};
use thiserror::Error;

use crate::config::{Config, InitialMember, Url};
use crate::identity::{Ids, founder_id, ids};

/// How long the other founders are asked whether they have founded the cluster already. They may not run yet.
const FOUNDERS_TIMEOUT: Duration = Duration::from_secs(1);

/// Who this member is.
#[derive(Debug)]
pub(crate) struct Enrolment {
    pub(crate) ids: Ids,
    /// The members of the cluster, if this one helps to found it.
    pub(crate) founders: Vec<Founder>,
}

/// Why a member cannot take its place.
#[derive(Debug, Error)]
pub enum JoinError {
    /// The identity in the log cannot be read.
    #[error("cannot read who the data in {} belongs to", path.display())]
    Read {
        /// The data directory.
        path: PathBuf,
        /// Why.
        source: Box<OpenError>,
    },
    /// A thread cannot be used.
    #[error("cannot read from the disk in the background")]
    Thread(#[source] io::Error),
    /// The data is another member's.
    #[error(
        "the data in {} belongs to member {found_member:x} of cluster {found_cluster:x}, but the flags make this member \
         {member:x} of cluster {cluster:x}: check --initial-cluster, --initial-cluster-token, \
         --initial-advertise-peer-urls and --data-dir; if only URLs have been changed since, start with \
         --initial-cluster-state=existing", path.display()
    )]
    OtherData {
        /// The data directory.
        path: PathBuf,
        /// The cluster that the data belongs to.
        found_cluster: u64,
        /// The member that it belongs to.
        found_member: u64,
        /// The cluster that the flags derive.
        cluster: u64,
        /// The member that they derive.
        member: u64,
    },
    /// There is nobody to ask about the cluster.
    #[error(
        "{} holds no data and --initial-cluster-state is existing, but --initial-cluster names no other member to ask: \
         name all members of the cluster in it", path.display()
    )]
    NobodyNamed {
        /// The data directory.
        path: PathBuf,
    },
    /// Nobody of the cluster answers.
    #[error("cannot ask the cluster who this member is, which --initial-cluster-state=existing calls for")]
    Unreachable(#[source] DiscoverError),
    /// The cluster has no member with these URLs.
    #[error(
        "cluster {cluster:x} has no member with the peer URLs {urls}: add it first (member add), and start it with the \
         same in --initial-cluster or --initial-advertise-peer-urls"
    )]
    NotAMember {
        /// The cluster.
        cluster: u64,
        /// The URLs that this member advertises.
        urls: String,
    },
    /// The flags and the cluster disagree about the members.
    #[error("--initial-cluster names {named} members, but cluster {cluster:x} has {found}: name exactly its members")]
    Count {
        /// The cluster.
        cluster: u64,
        /// In the flag.
        named: usize,
        /// In the cluster.
        found: usize,
    },
    /// The flags and the cluster disagree about where the members are.
    #[error("--initial-cluster has {name}={urls}, but cluster {cluster:x} has no member with these peer URLs")]
    Urls {
        /// The cluster.
        cluster: u64,
        /// The member as named in the flag.
        name: String,
        /// Its URLs there.
        urls: String,
    },
    /// This member has run before, with data that is not here.
    #[error(
        "member {id:x} ({name}) has run in cluster {cluster:x} before, but {} holds no data of it: a member must not come \
         back without what it has acknowledged; if the data is lost, remove the member, add it again, and start it with \
         --initial-cluster-state=existing", path.display()
    )]
    DataLost {
        /// The cluster.
        cluster: u64,
        /// The member.
        id: u64,
        /// The name that it ran under.
        name: String,
        /// The data directory.
        path: PathBuf,
    },
    /// This member was removed from the cluster.
    #[error(
        "member {id:x} was removed from cluster {cluster:x} for good: to bring it back, add it again, and start it with \
         --initial-cluster-state=existing"
    )]
    Removed {
        /// The cluster.
        cluster: u64,
        /// The member.
        id: u64,
    },
}

/// Finds out who this member is. Nothing is written.
pub(crate) async fn enrol(config: &Config, options: StorageOptions) -> Result<(Enrolment, StorageOptions), JoinError> {
    let read = tokio::task::spawn_blocking(move || (stored_identity(&options), options));
    let (stored, options) = read.await.map_err(|error| JoinError::Thread(io::Error::other(error)))?;
    let path = || config.data_dir.clone();
    let stored = stored.map_err(|source| JoinError::Read { path: path(), source: Box::new(source) })?;
    let enrolment = match stored {
        Some(stored) => returning(config, stored)?,
        None if config.initial_cluster_existing => joining(config).await?,
        None => founding(config).await?,
    };
    Ok((enrolment, options))
}

/// A member that has data.
fn returning(config: &Config, stored: StoredIdentity) -> Result<Enrolment, JoinError> {
    let derived = ids(config);
    let found = Ids { cluster: stored.cluster_id, member: stored.member_id };
    let is_new = !config.initial_cluster_existing;
    if found == derived {
        // If it was stopped before anything had happened, it has yet to found its cluster.
        return Ok(Enrolment { ids: found, founders: if is_new { founders(config) } else { Vec::new() } });
    }
    if is_new && config.initial_cluster_given {
        return Err(JoinError::OtherData {
            path: config.data_dir.clone(),
            found_cluster: found.cluster,
            found_member: found.member,
            cluster: derived.cluster,
            member: derived.member,
        });
    }
    Ok(Enrolment { ids: found, founders: Vec::new() })
}

/// A member of a new cluster. What the other founders say is only a help: a member that lost its data is refused by
/// them in any case, but here it hears why before it has begun anything.
async fn founding(config: &Config) -> Result<Enrolment, JoinError> {
    let own = ids(config);
    let others = other_urls(config);
    if !others.is_empty()
        && let Ok(view) = discover(&others, FOUNDERS_TIMEOUT).await
        && view.cluster_id == own.cluster
    {
        refuse_known(config, own.member, &view)?;
    }
    Ok(Enrolment { ids: own, founders: founders(config) })
}

/// A member that was added to a running cluster.
async fn joining(config: &Config) -> Result<Enrolment, JoinError> {
    let others = other_urls(config);
    if others.is_empty() {
        return Err(JoinError::NobodyNamed { path: config.data_dir.clone() });
    }
    let patience = config.request_timeout();
    let view = discover(&others, patience).await.map_err(JoinError::Unreachable)?;
    let view = as_the_leader_sees_it(view, patience).await;
    let member = place(config, &view)?;
    tracing::info!(
        cluster_id = format!("{:x}", view.cluster_id),
        member_id = format!("{member:x}"),
        "joining a running cluster"
    );
    Ok(Enrolment { ids: Ids { cluster: view.cluster_id, member }, founders: Vec::new() })
}

/// Whoever answered first may not have heard yet that this member was added; the leader has.
async fn as_the_leader_sees_it(view: ClusterView, patience: Duration) -> ClusterView {
    let leader = view.leader.filter(|leader| *leader != view.member_id);
    let Some((leader, _)) = view.members.iter().find(|(member, _)| Some(member.id) == leader) else { return view };
    match discover(&leader.peer_urls, patience).await {
        Ok(newer) if newer.cluster_id == view.cluster_id => newer,
        Ok(_) | Err(_) => view,
    }
}

/// The id of the member that this one is, judged as etcd does: the flag must name exactly the members that there are.
fn place(config: &Config, view: &ClusterView) -> Result<u64, JoinError> {
    let cluster = view.cluster_id;
    let Some(own) = find(view, &config.advertise_peer_urls) else {
        return Err(JoinError::NotAMember { cluster, urls: texts(&config.advertise_peer_urls).join(",") });
    };
    let (named, found) = (config.initial_cluster.len(), view.members.len());
    if named != found {
        return Err(JoinError::Count { cluster, named, found });
    }
    if let Some(missing) = config.initial_cluster.iter().find(|member| find(view, &member.peer_urls).is_none()) {
        let (name, urls) = (missing.name.clone(), texts(&missing.peer_urls).join(","));
        return Err(JoinError::Urls { cluster, name, urls });
    }
    refuse_known(config, own.id, view)?;
    Ok(own.id)
}

/// The member with exactly these peer URLs.
fn find<'a>(view: &'a ClusterView, urls: &[Url]) -> Option<&'a PeerMember> {
    let wanted: BTreeSet<String> = texts(urls).into_iter().collect();
    let has = |member: &PeerMember| member.peer_urls.iter().cloned().collect::<BTreeSet<_>>() == wanted;
    view.members.iter().map(|(member, _)| member).find(|member| has(member))
}

/// A member without data must not have run before: it publishes its name once it does.
fn refuse_known(config: &Config, id: u64, view: &ClusterView) -> Result<(), JoinError> {
    let cluster = view.cluster_id;
    if view.removed.contains(&id) {
        return Err(JoinError::Removed { cluster, id });
    }
    match view.members.iter().find(|(member, name)| member.id == id && !name.is_empty()) {
        Some((_, name)) => Err(JoinError::DataLost { cluster, id, name: name.clone(), path: config.data_dir.clone() }),
        None => Ok(()),
    }
}

fn founders(config: &Config) -> Vec<Founder> {
    let founder =
        |member: &InitialMember| Founder { id: founder_id(config, member), peer_urls: texts(&member.peer_urls) };
    config.initial_cluster.iter().map(founder).collect()
}

fn other_urls(config: &Config) -> Vec<String> {
    let others = config.initial_cluster.iter().filter(|member| member.name != config.name);
    others.flat_map(|member| texts(&member.peer_urls)).collect()
}

/// URLs as they are compared, stored and sent.
pub(crate) fn texts(urls: &[Url]) -> Vec<String> {
    urls.iter().map(Url::to_string).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::Invocation;

    const THREE: &str = "a=http://h:1,b=http://h:2,c=http://h:3";

    fn config(args: &[&str]) -> Config {
        parsed(&[&["--name=b", "--initial-advertise-peer-urls=http://h:2"], args].concat())
    }

    fn parsed(args: &[&str]) -> Config {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        match Config::from_args(&args, std::iter::empty()).unwrap() {
            Invocation::Serve(config) => *config,
            Invocation::Print(text) => panic!("prints {text}"),
        }
    }

    fn three(more: &[&str]) -> Config {
        let cluster = format!("--initial-cluster={THREE}");
        config(&[&[cluster.as_str()], more].concat())
    }

    fn view(members: &[(u64, &str, &str)], removed: &[u64]) -> ClusterView {
        let member = |(id, url, name): &(u64, &str, &str)| {
            let peer_urls = vec![(*url).to_owned()];
            (PeerMember { id: *id, peer_urls, is_learner: false }, (*name).to_owned())
        };
        ClusterView {
            cluster_id: 9,
            member_id: 1,
            leader: Some(1),
            members: members.iter().map(member).collect(),
            removed: removed.to_vec(),
        }
    }

    #[test]
    fn the_data_says_who_a_member_is_and_the_flags_must_agree() {
        let config = three(&[]);
        let own = ids(&config);
        let stored =
            |ids: Ids| StoredIdentity { cluster_id: ids.cluster, member_id: ids.member, directory_uuid: [7; 16] };
        let same = returning(&config, stored(own)).unwrap();
        assert_eq!((same.ids, same.founders.len()), (own, 3));
        assert_eq!(same.founders[1].id, own.member);

        let other = Ids { cluster: 1, member: 2 };
        let error = returning(&config, stored(other)).unwrap_err().to_string();
        assert!(error.contains("member 2 of cluster 1") && error.contains("existing"), "{error}");
        let wrong_token = three(&["--initial-cluster-token=t"]);
        assert!(matches!(returning(&wrong_token, stored(own)), Err(JoinError::OtherData { .. })));
        let existing = three(&["--initial-cluster-state=existing"]);
        let changed = returning(&existing, stored(other)).unwrap();
        assert_eq!((changed.ids, changed.founders.len()), (other, 0));
    }

    #[test]
    fn a_member_without_flags_trusts_its_data() {
        let Invocation::Serve(config) = Config::from_args(&[], std::iter::empty()).unwrap() else { panic!("prints") };
        let stored = StoredIdentity { cluster_id: 1, member_id: 2, directory_uuid: [7; 16] };
        let enrolment = returning(&config, stored).unwrap();
        assert_eq!(enrolment.ids, Ids { cluster: 1, member: 2 });
        assert!(enrolment.founders.is_empty());
    }

    #[test]
    fn a_place_is_found_by_the_peer_urls() {
        let config = three(&[]);
        let members = [(1, "http://h:1", "a"), (2, "http://h:2", ""), (3, "http://h:3", "c")];
        assert_eq!(place(&config, &view(&members, &[])).unwrap(), 2);

        let error =
            |members: &[(u64, &str, &str)], removed: &[u64]| place(&config, &view(members, removed)).unwrap_err();
        assert!(matches!(error(&members[..1], &[]), JoinError::NotAMember { cluster: 9, .. }));
        assert!(matches!(error(&members[..2], &[]), JoinError::Count { named: 3, found: 2, .. }));
        let moved = [members[0], members[1], (3, "http://h:4", "c")];
        let JoinError::Urls { name, urls, .. } = error(&moved, &[]) else { panic!("not refused for its URLs") };
        assert_eq!((name.as_str(), urls.as_str()), ("c", "http://h:3"));
        let started = [members[0], (2, "http://h:2", "b"), members[2]];
        assert!(matches!(error(&started, &[]), JoinError::DataLost { id: 2, .. }));
        assert!(matches!(error(&members, &[2]), JoinError::Removed { id: 2, .. }));
    }

    #[test]
    fn a_place_is_found_by_what_initial_cluster_says_where_nothing_else_does() {
        let members = [(1, "http://h:1", "a"), (2, "http://h:2", ""), (3, "http://h:3", "c")];
        let cluster = format!("--initial-cluster={THREE}");
        let config = parsed(&["--name=b", &cluster, "--initial-cluster-state=existing"]);
        assert_eq!(place(&config, &view(&members, &[])).unwrap(), 2);
    }
}
