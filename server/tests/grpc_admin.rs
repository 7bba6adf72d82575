//! The cluster and maintenance services over gRPC, and what of them JSON serves anew.
#![allow(clippy::unwrap_used)]

mod common;

use common::grpc::{block_on, clients, get, pb, put, refused};
use common::{directory, start};
use serde_json::json;
use tonic::Code;

const NOSPACE: i32 = 1;
const CORRUPT: i32 = 2;

#[test]
fn members_are_listed_and_changed() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let mut cluster = clients(&tally).cluster;
        let listed = cluster.member_list(pb::MemberListRequest { linearizable: true }).await.unwrap().into_inner();
        let header = listed.header.unwrap();
        assert_eq!((listed.members.len(), header.revision), (1, 0));
        assert_eq!((listed.members[0].id, &*listed.members[0].name), (header.member_id, "default"));
        assert!(!listed.members[0].client_ur_ls.is_empty() && !listed.members[0].is_learner);

        let add = pb::MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.1:1".into()], is_learner: true };
        let added = cluster.member_add(add.clone()).await.unwrap().into_inner();
        let learner = added.member.unwrap();
        assert!(learner.is_learner && learner.name.is_empty() && added.members.contains(&learner));
        refused(cluster.member_add(add).await, Code::FailedPrecondition, "etcdserver: Peer URLs already exists");
        let nonsense = pb::MemberAddRequest { peer_ur_ls: vec!["nonsense".into()], is_learner: false };
        refused(cluster.member_add(nonsense).await, Code::InvalidArgument, "etcdserver: given member URLs are invalid");
        // All members' URLs stand in entries and frames of bounded size.
        let many = (1..=65).map(|port| format!("http://127.0.0.1:{port}")).collect();
        for peer_ur_ls in [many, vec![format!("http://{}:1", "h".repeat(16 << 10))]] {
            let large = pb::MemberUpdateRequest { id: learner.id, peer_ur_ls };
            refused(
                cluster.member_update(large).await,
                Code::InvalidArgument,
                "etcdserver: given member URLs are invalid",
            );
        }
        let text = "etcdserver: can only promote a learner member which is in sync with leader";
        let promote = pb::MemberPromoteRequest { id: learner.id };
        refused(cluster.member_promote(promote).await, Code::FailedPrecondition, text);
        let update = pb::MemberUpdateRequest { id: learner.id, peer_ur_ls: vec!["http://127.0.0.1:2".into()] };
        let updated = cluster.member_update(update).await.unwrap().into_inner();
        let moved = updated.members.iter().find(|member| member.id == learner.id).unwrap();
        assert_eq!(moved.peer_ur_ls, ["http://127.0.0.1:2"]);
        let removed = cluster.member_remove(pb::MemberRemoveRequest { id: learner.id }).await.unwrap().into_inner();
        assert_eq!(removed.members.len(), 1);
        let again = cluster.member_remove(pb::MemberRemoveRequest { id: learner.id }).await;
        refused(again, Code::NotFound, "etcdserver: member not found");
    });
}

#[test]
fn status_and_hashes_are_those_of_json() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let mut clients = clients(&tally);
        clients.kv.put(put("a", "1")).await.unwrap();
        let status = clients.maintenance.status(pb::StatusRequest {}).await.unwrap().into_inner();
        let over_json = tally.ok("/v3/maintenance/status", &json!({}));
        assert_eq!(over_json["version"], status.version);
        assert_eq!(over_json["storageVersion"], status.storage_version);
        assert_eq!(over_json["leader"], status.leader.to_string());
        assert_eq!(over_json["dbSizeQuota"], status.db_size_quota.to_string());
        assert_eq!(over_json["raftTerm"], status.raft_term.to_string());
        assert!(status.db_size > 0 && status.raft_index >= status.raft_applied_index && status.errors.is_empty());
        assert_eq!(status.header.unwrap().revision, 2);

        let hashed = clients.maintenance.hash_kv(pb::HashKvRequest { revision: 0 }).await.unwrap().into_inner();
        let over_json = tally.ok("/v3/maintenance/hashkv", &json!({}));
        assert_eq!(over_json["hash"], hashed.hash);
        assert_eq!((hashed.hash_revision, hashed.compact_revision), (2, -1));
        let hash = clients.maintenance.hash(pb::HashRequest {}).await.unwrap().into_inner();
        assert_eq!(tally.ok("/v3/maintenance/hash", &json!({}))["hash"], hash.hash);

        let own = pb::MoveLeaderRequest { target_id: status.leader };
        assert_eq!(clients.maintenance.move_leader(own).await.unwrap().into_inner().header, None);
        let nobody = pb::MoveLeaderRequest { target_id: 1 };
        let text = "etcdserver: bad leader transferee";
        refused(clients.maintenance.move_leader(nobody).await, Code::FailedPrecondition, text);
    });
}

#[test]
fn alarms_are_raised_listed_and_cleared() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let mut clients = clients(&tally);
        let mut alarm = async |action: i32, member_id: u64, alarm: i32| {
            let request = pb::AlarmRequest { action, member_id, alarm };
            let answer = clients.maintenance.alarm(request).await.unwrap().into_inner();
            assert!(answer.header.unwrap().revision > 0);
            answer.alarms.into_iter().map(|alarm| (alarm.member_id, alarm.alarm)).collect::<Vec<_>>()
        };
        assert_eq!(alarm(0, 0, 0).await, []);
        assert_eq!(alarm(1, 7, NOSPACE).await, [(7, NOSPACE)]);
        assert_eq!(alarm(1, 7, NOSPACE).await, [(7, NOSPACE)]);
        assert_eq!(alarm(1, 9, NOSPACE).await, [(9, NOSPACE)]);
        assert_eq!(alarm(0, 0, 0).await, [(7, NOSPACE), (9, NOSPACE)]);
        assert_eq!(alarm(0, 0, CORRUPT).await, []);
        let text = "etcdserver: mvcc: database space exceeded";
        refused(clients.kv.put(put("a", "1")).await, Code::ResourceExhausted, text);
        let status = clients.maintenance.status(pb::StatusRequest {}).await.unwrap().into_inner();
        assert_eq!(status.errors, ["memberID:7 alarm:NOSPACE ", "memberID:9 alarm:NOSPACE "]);

        let over_json = |body| tally.ok("/v3/maintenance/alarm", &body)["alarms"].clone();
        let both = json!([{"memberID": "7", "alarm": "NOSPACE"}, {"memberID": "9", "alarm": "NOSPACE"}]);
        assert_eq!(over_json(json!({"action": "GET"})), both);
        let seven = json!({"action": "DEACTIVATE", "memberID": "7", "alarm": "NOSPACE"});
        assert_eq!(over_json(seven.clone()), json!([{"memberID": "7", "alarm": "NOSPACE"}]));
        assert_eq!(over_json(seven), json!(null));
        let mut alarm = async |action: i32, member_id: u64, alarm: i32| {
            let request = pb::AlarmRequest { action, member_id, alarm };
            let answer = clients.maintenance.alarm(request).await.unwrap().into_inner();
            answer.alarms.into_iter().map(|alarm| (alarm.member_id, alarm.alarm)).collect::<Vec<_>>()
        };
        // No kind is no alarm.
        assert_eq!(alarm(2, 9, 0).await, []);
        assert_eq!(alarm(2, 9, NOSPACE).await, [(9, NOSPACE)]);
        clients.kv.put(put("a", "1")).await.unwrap();

        assert_eq!(alarm(1, 7, CORRUPT).await, [(7, CORRUPT)]);
        refused(clients.kv.range(get("a")).await, Code::DataLoss, "etcdserver: corrupt cluster");
        assert_eq!(alarm(2, 7, CORRUPT).await, [(7, CORRUPT)]);
        clients.kv.range(get("a")).await.unwrap();
    });
}

#[test]
fn defragmenting_gives_space_back_and_keeps_everything() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let mut clients = clients(&tally);
        // Values that do not compress.
        let mut number = 1_u64;
        let mut value = || {
            let words = (0..25_000).map(|_| {
                number ^= number << 13;
                number ^= number >> 7;
                number ^= number << 17;
                number
            });
            words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>()
        };
        let mut last = Vec::new();
        for _ in 0..20 {
            for key in 0..8 {
                last = value();
                let (key, value) = (format!("k{key}").into(), last.clone().into());
                clients.kv.put(pb::PutRequest { key, value, ..Default::default() }).await.unwrap();
            }
        }
        // Sizes are up to a second old.
        while clients.maintenance.status(pb::StatusRequest {}).await.unwrap().into_inner().db_size < 30_000_000 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let compaction = pb::CompactionRequest { revision: 161, physical: true };
        clients.kv.compact(compaction).await.unwrap();
        let hash = clients.maintenance.hash_kv(pb::HashKvRequest { revision: 0 }).await.unwrap().into_inner().hash;
        let answer = clients.maintenance.defragment(pb::DefragmentRequest {}).await.unwrap().into_inner();
        assert_eq!(answer.header, None);
        let after = clients.maintenance.status(pb::StatusRequest {}).await.unwrap().into_inner();
        assert!((1_600_000..6_000_000).contains(&after.db_size), "{}", after.db_size);
        let hashed = clients.maintenance.hash_kv(pb::HashKvRequest { revision: 0 }).await.unwrap().into_inner().hash;
        assert_eq!(hashed, hash);
        let all = clients.kv.range(common::grpc::from("k")).await.unwrap().into_inner();
        assert_eq!((all.count, &all.kvs[7].value[..]), (8, &last[..]));
    });
    assert_eq!(tally.post("/v3/maintenance/defragment", "{}").body, "{}");
    assert_eq!(tally.metric("etcd_disk_defrag_inflight"), 0.0);
    assert_eq!(tally.metric("etcd_disk_backend_defrag_duration_seconds_count"), 2.0);
}
