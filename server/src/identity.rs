//! Ids of clusters and members, derived exactly as etcd derives them.

use std::time::{SystemTime, UNIX_EPOCH};

use sha1::{Digest, Sha1};

use crate::config::{Config, InitialMember, Url};

/// The ids of a member of a new cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ids {
    pub(crate) cluster: u64,
    pub(crate) member: u64,
}

/// The ids that a configuration gives.
pub(crate) fn ids(config: &Config) -> Ids {
    let mut members: Vec<u64> = config.initial_cluster.iter().map(|member| founder_id(config, member)).collect();
    members.sort_unstable();
    let own = config.initial_cluster.iter().find(|member| member.name == config.name);
    Ids { cluster: cluster_id(&members), member: own.map_or(0, |member| founder_id(config, member)) }
}

/// The id of a member of a new cluster.
pub(crate) fn founder_id(config: &Config, member: &InitialMember) -> u64 {
    member_id(&member.peer_urls, &config.initial_cluster_token)
}

/// The id of a member that is added to a running cluster. The time makes it another one whenever the same URLs are added
/// again.
pub(crate) fn new_member_id(peer_urls: &[Url], now: SystemTime) -> u64 {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    member_id(peer_urls, &seconds.to_string())
}

/// The first eight bytes of the SHA-1 of the sorted peer URLs and a suffix.
fn member_id(peer_urls: &[Url], suffix: &str) -> u64 {
    let mut urls: Vec<String> = peer_urls.iter().map(ToString::to_string).collect();
    urls.sort_unstable();
    let mut hash = Sha1::new();
    urls.iter().for_each(|url| hash.update(url));
    hash.update(suffix);
    first_eight(hash)
}

/// The first eight bytes of the SHA-1 of the sorted member ids.
fn cluster_id(sorted_members: &[u64]) -> u64 {
    let mut hash = Sha1::new();
    sorted_members.iter().for_each(|id| hash.update(id.to_be_bytes()));
    first_eight(hash)
}

fn first_eight(hash: Sha1) -> u64 {
    let digest = hash.finalize();
    digest.iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::Invocation;

    /// What etcd 3.5.1 logged when it was started with the same flags.
    #[test]
    fn ids_are_those_that_etcd_gives() {
        let args = [
            "--name=n1",
            "--initial-advertise-peer-urls=http://127.0.0.1:23800",
            "--initial-cluster=n1=http://127.0.0.1:23800",
            "--initial-cluster-token=tok1",
        ]
        .map(String::from);
        let Invocation::Serve(config) = Config::from_args(&args, std::iter::empty()).unwrap() else { panic!("serves") };
        assert_eq!(ids(&config), Ids { cluster: 0xddcd_f4f4_fbba_999b, member: 0x628e_d94a_d692_e8a1 });
    }

    #[test]
    fn an_added_member_has_an_id_of_its_moment() {
        use std::time::Duration;
        let urls = [Url::parse("http://127.0.0.1:23802").unwrap(), Url::parse("http://127.0.0.1:23801").unwrap()];
        let sorted = [urls[1].clone(), urls[0].clone()];
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(new_member_id(&urls, at(1_600_000_000)), new_member_id(&sorted, at(1_600_000_000)));
        assert_ne!(new_member_id(&urls, at(1_600_000_000)), new_member_id(&urls, at(1_600_000_001)));
        // SHA-1 of "http://127.0.0.1:238011600000000".
        assert_eq!(new_member_id(&sorted[..1], at(1_600_000_000)), 0x809a_da83_841d_6216);
    }
}
