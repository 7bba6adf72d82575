//! What can be asked: one table knows every RPC with its names in gRPC, its JSON paths and its name in metrics.

/// What kind of exchange an RPC is; named as in metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exchange {
    /// One request, one answer.
    Unary,
    /// One request, any number of answers.
    ServerStream,
    /// Requests and answers at any time.
    BidiStream,
}

impl Exchange {
    /// gRPC's name of it in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::ServerStream => "server_stream",
            Self::BidiStream => "bidi_stream",
        }
    }
}

/// Makes the enum of the RPCs and the ways to find one by a path. A row: variant, service, method, exchange, the `type` in
/// etcd's histogram of durations, JSON paths behind `/v3/`.
macro_rules! rpcs {
    ($($route:ident = $service:literal $method:literal $exchange:ident $kind:literal [$($path:literal),*];)+) => {
        /// An RPC.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Route {
            $($route),+
        }

        impl Route {
            /// All of them, in the order of their numbers.
            pub(crate) const ALL: &[Route] = &[$(Route::$route),+];

            /// By the path of a gRPC request.
            pub(crate) fn of_grpc(path: &str) -> Option<Route> {
                Some(match path {
                    $(concat!("/", $service, "/", $method) => Route::$route,)+
                    _ => return None,
                })
            }

            /// By what stands behind `/v3/` in the path of a JSON request.
            pub(crate) fn of_json(path: &str) -> Option<Route> {
                Some(match path {
                    $($($path => Route::$route,)*)+
                    _ => return None,
                })
            }

            /// The full name of the service.
            pub(crate) fn service(self) -> &'static str {
                match self {
                    $(Route::$route => $service),+
                }
            }

            /// The name of the method.
            pub(crate) fn method(self) -> &'static str {
                match self {
                    $(Route::$route => $method),+
                }
            }

            /// Unary, or which kind of stream.
            pub(crate) fn exchange(self) -> Exchange {
                match self {
                    $(Route::$route => Exchange::$exchange),+
                }
            }

            /// The `type` in etcd's histogram of durations.
            pub(crate) fn kind(self) -> &'static str {
                match self {
                    $(Route::$route => $kind),+
                }
            }
        }
    };
}

rpcs! {
    Range = "etcdserverpb.KV" "Range" Unary "range" ["kv/range"];
    RangeStream = "etcdserverpb.KV" "RangeStream" ServerStream "range_stream" [];
    Put = "etcdserverpb.KV" "Put" Unary "put" ["kv/put"];
    DeleteRange = "etcdserverpb.KV" "DeleteRange" Unary "delete_range" ["kv/deleterange"];
    Txn = "etcdserverpb.KV" "Txn" Unary "txn" ["kv/txn"];
    Compact = "etcdserverpb.KV" "Compact" Unary "compaction" ["kv/compaction"];
    LeaseGrant = "etcdserverpb.Lease" "LeaseGrant" Unary "lease_grant" ["lease/grant"];
    LeaseRevoke = "etcdserverpb.Lease" "LeaseRevoke" Unary "lease_revoke" ["lease/revoke", "kv/lease/revoke"];
    LeaseKeepAlive = "etcdserverpb.Lease" "LeaseKeepAlive" BidiStream "lease_keep_alive" ["lease/keepalive"];
    LeaseTimeToLive = "etcdserverpb.Lease" "LeaseTimeToLive" Unary "lease_time_to_live" ["lease/timetolive", "kv/lease/timetolive"];
    LeaseLeases = "etcdserverpb.Lease" "LeaseLeases" Unary "lease_leases" ["lease/leases", "kv/lease/leases"];
    Alarm = "etcdserverpb.Maintenance" "Alarm" Unary "alarm" ["maintenance/alarm"];
    Watch = "etcdserverpb.Watch" "Watch" BidiStream "watch" ["watch"];
    Status = "etcdserverpb.Maintenance" "Status" Unary "status" ["maintenance/status"];
    Defragment = "etcdserverpb.Maintenance" "Defragment" Unary "defragment" ["maintenance/defragment"];
    Hash = "etcdserverpb.Maintenance" "Hash" Unary "hash" ["maintenance/hash"];
    HashKv = "etcdserverpb.Maintenance" "HashKV" Unary "hash_kv" ["maintenance/hashkv"];
    MoveLeader = "etcdserverpb.Maintenance" "MoveLeader" Unary "move_leader" ["maintenance/transfer-leadership"];
    MemberAdd = "etcdserverpb.Cluster" "MemberAdd" Unary "member_add" ["cluster/member/add"];
    MemberRemove = "etcdserverpb.Cluster" "MemberRemove" Unary "member_remove" ["cluster/member/remove"];
    MemberUpdate = "etcdserverpb.Cluster" "MemberUpdate" Unary "member_update" ["cluster/member/update"];
    MemberList = "etcdserverpb.Cluster" "MemberList" Unary "member_list" ["cluster/member/list"];
    MemberPromote = "etcdserverpb.Cluster" "MemberPromote" Unary "member_promote" ["cluster/member/promote"];
    AuthStatus = "etcdserverpb.Auth" "AuthStatus" Unary "auth_status" ["auth/status"];
    Authenticate = "etcdserverpb.Auth" "Authenticate" Unary "authenticate" ["auth/authenticate"];
    Lock = "v3lockpb.Lock" "Lock" Unary "lock" ["lock/lock"];
    Unlock = "v3lockpb.Lock" "Unlock" Unary "unlock" ["lock/unlock"];
    Campaign = "v3electionpb.Election" "Campaign" Unary "campaign" ["election/campaign"];
    Proclaim = "v3electionpb.Election" "Proclaim" Unary "proclaim" ["election/proclaim"];
    Leader = "v3electionpb.Election" "Leader" Unary "leader" ["election/leader"];
    Observe = "v3electionpb.Election" "Observe" ServerStream "observe" ["election/observe"];
    Resign = "v3electionpb.Election" "Resign" Unary "resign" ["election/resign"];
    HealthCheck = "grpc.health.v1.Health" "Check" Unary "health_check" [];
    HealthWatch = "grpc.health.v1.Health" "Watch" ServerStream "health_watch" [];
}

/// The RPC of the path of a JSON request: none if it is another path, and `Some(None)` if there is no such RPC.
pub(super) fn json_route(path: &str) -> Option<Option<Route>> {
    // `/v3beta/` is what the gateway was called before 3.4.
    let name = path.strip_prefix("/v3/").or_else(|| path.strip_prefix("/v3beta/"))?;
    Some(Route::of_json(name))
}

/// The RPC of the path of a request, in either form.
pub(crate) fn route(path: &str) -> Option<Route> {
    json_route(path).unwrap_or_else(|| Route::of_grpc(path))
}

impl Route {
    /// True if the answer is long in coming when all is well: others come first.
    pub(crate) fn waits(self) -> bool {
        matches!(self, Route::Lock | Route::Campaign)
    }

    /// True if it may take as long as it likes: it waits, or goes through all of the data.
    pub(crate) fn may_take_long(self) -> bool {
        self.waits() || matches!(self, Route::Defragment | Route::Hash | Route::HashKv)
    }

    /// True if its answer goes on for as long as the client wants to be told of what happens.
    pub(crate) fn tells(self) -> bool {
        matches!(self, Route::Watch | Route::Observe)
    }

    /// True if its answer goes on for as long as the client likes, which takes it when it likes.
    pub(crate) fn goes_on(self) -> bool {
        self.exchange() != Exchange::Unary && self != Route::RangeStream
    }

    /// What a learner answers too; of ranges, those that do not have to be linearizable.
    pub(crate) fn is_for_learners(self) -> bool {
        matches!(self, Route::Range | Route::Status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paths_of_etcd() {
        for (path, route) in [
            ("kv/range", Some(Route::Range)),
            ("maintenance/hashkv", Some(Route::HashKv)),
            ("maintenance/transfer-leadership", Some(Route::MoveLeader)),
            ("cluster/member/promote", Some(Route::MemberPromote)),
            ("cluster/member", None),
            ("kv/range/", None),
            ("kv", None),
            ("KV/range", None),
            ("/kv/range", None),
            ("", None),
        ] {
            assert_eq!(Route::of_json(path), route, "{path}");
        }
    }

    #[test]
    fn what_may_take_long_is_known_in_every_form() {
        let waits = |path| super::route(path).is_some_and(Route::may_take_long);
        for path in ["/v3/lock/lock", "/v3beta/election/campaign", "/v3electionpb.Election/Campaign"] {
            assert!(waits(path), "{path}");
        }
        for path in ["/v3beta/maintenance/hashkv", "/etcdserverpb.Maintenance/Defragment"] {
            assert!(waits(path), "{path}");
        }
        for path in ["/v3/kv/put", "/etcdserverpb.KV/Put", "/v3/v3beta/lock/lock", "lock/lock", "/", ""] {
            assert!(!waits(path), "{path}");
        }
    }

    #[test]
    fn every_rpc_is_found_by_its_name_in_grpc() {
        for (number, route) in Route::ALL.iter().enumerate() {
            assert_eq!(*route as usize, number);
            let path = format!("/{}/{}", route.service(), route.method());
            assert_eq!(Route::of_grpc(&path), Some(*route));
            assert_eq!(Route::of_grpc(&path[1..]), None);
        }
    }
}
