//! Who this member is: ids derived from the initial cluster exactly as etcd derives them.

use sha1::{Digest, Sha1};

use crate::config::{Config, InitialMember};

/// The ids of a member of a new cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ids {
    pub(crate) cluster: u64,
    pub(crate) member: u64,
}

/// The ids that a configuration gives.
pub(crate) fn ids(config: &Config) -> Ids {
    let id = |member: &InitialMember| member_id(member, &config.initial_cluster_token);
    let mut members: Vec<u64> = config.initial_cluster.iter().map(id).collect();
    members.sort_unstable();
    let member = config.initial_cluster.iter().find(|member| member.name == config.name).map_or(0, id);
    Ids { cluster: cluster_id(&members), member }
}

/// The first eight bytes of the SHA-1 of the sorted peer URLs and the token.
fn member_id(member: &InitialMember, token: &str) -> u64 {
    let mut urls: Vec<String> = member.peer_urls.iter().map(ToString::to_string).collect();
    urls.sort_unstable();
    let mut hash = Sha1::new();
    urls.iter().for_each(|url| hash.update(url));
    hash.update(token);
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
}
