//! The servers of one cluster, started and stopped together or one by one.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use crate::api::{self, Status};
use crate::error::{Error, Result};
use crate::http::Client;
use crate::node::{Node, Plan};

/// How long the members may take to agree on a leader.
const ELECTION_PATIENCE: Duration = Duration::from_secs(60);
/// How long a member may take to answer about itself.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// A cluster. Dropping it kills what runs of it.
#[derive(Debug)]
pub(crate) struct Group {
    plans: Vec<Plan>,
    /// Beside each plan its process, while it runs.
    nodes: Vec<Option<Node>>,
}

impl Group {
    /// Starts every member and waits until each answers linearizable reads.
    pub(crate) fn start(plans: Vec<Plan>) -> Result<Group> {
        let mut nodes = plans.iter().map(|plan| plan.start().map(Some)).collect::<Result<Vec<_>>>()?;
        for node in nodes.iter_mut().flatten() {
            node.wait_ready()?;
        }
        Ok(Group { plans, nodes })
    }

    /// How each member is started.
    pub(crate) fn plans(&self) -> &[Plan] {
        &self.plans
    }

    /// Where clients reach the members that run.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.running().map(|(plan, _)| plan.client).collect()
    }

    /// Where clients reach the members that run, without one of them.
    pub(crate) fn addresses_without(&self, index: usize) -> Vec<SocketAddr> {
        let left_out = self.plans[index].client;
        self.addresses().into_iter().filter(|address| *address != left_out).collect()
    }

    /// The processes that run.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.running().map(|(_, node)| node.pid()).collect()
    }

    /// A blocking client of one member.
    pub(crate) fn client(&self, index: usize) -> Client {
        Client::new(self.plans[index].client, STATUS_TIMEOUT)
    }

    /// What a member says of itself.
    pub(crate) fn status(&self, index: usize) -> Result<Status> {
        api::status(&mut self.client(index))
    }

    /// The leader that all running members agree on.
    pub(crate) fn leader(&self) -> Result<usize> {
        let begun = Instant::now();
        loop {
            let said = self.statuses();
            if let Some(leader) = said.as_ref().ok().and_then(|said| agreed(said)) {
                return Ok(leader);
            }
            if begun.elapsed() > ELECTION_PATIENCE {
                return Err(Error::Answer(format!("no leader that all know after {ELECTION_PATIENCE:?}: {said:?}")));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn statuses(&self) -> Result<Vec<(usize, Status)>> {
        let running = (0..self.plans.len()).filter(|index| self.nodes[*index].is_some());
        running.map(|index| Ok((index, self.status(index)?))).collect()
    }

    /// A member that runs.
    pub(crate) fn node(&mut self, index: usize) -> Result<&mut Node> {
        let name = &self.plans[index].name;
        self.nodes[index].as_mut().ok_or_else(|| Error::Check(format!("{name} does not run")))
    }

    /// SIGKILL to a member; it is gone when this returns.
    pub(crate) fn kill(&mut self, index: usize) -> Result<()> {
        self.node(index)?.kill()?;
        self.nodes[index] = None;
        Ok(())
    }

    /// SIGTERM to a member; it is gone when this returns.
    pub(crate) fn stop(&mut self, index: usize) -> Result<()> {
        self.node(index)?.stop()?;
        self.nodes[index] = None;
        Ok(())
    }

    /// Starts a member again; it is not ready yet.
    pub(crate) fn launch(&mut self, index: usize) -> Result<&mut Node> {
        self.nodes[index] = Some(self.plans[index].start()?);
        self.node(index)
    }

    /// SIGTERM to all of them.
    pub(crate) fn stop_all(mut self) -> Result<()> {
        for node in self.nodes.iter_mut().flatten() {
            node.terminate()?;
        }
        self.nodes.iter_mut().flatten().try_for_each(Node::wait_end)
    }

    fn running(&self) -> impl Iterator<Item = (&Plan, &Node)> {
        self.plans.iter().zip(&self.nodes).filter_map(|(plan, node)| Some((plan, node.as_ref()?)))
    }
}

/// The member that all of them, itself included, call the leader.
pub(crate) fn agreed(said: &[(usize, Status)]) -> Option<usize> {
    let leader = said.first()?.1.leader.as_ref()?;
    let all = said.iter().all(|(_, status)| status.leader.as_ref() == Some(leader));
    let found = said.iter().find(|(_, status)| status.member == *leader);
    found.filter(|_| all).map(|(index, _)| *index)
}

#[cfg(test)]
mod tests {
    use super::agreed;
    use crate::api::Status;

    fn said(leaders: [Option<&str>; 3]) -> Vec<(usize, Status)> {
        let statuses = leaders.into_iter().zip(["7", "8", "9"]).map(|(leader, member)| Status {
            member: member.to_owned(),
            leader: leader.map(str::to_owned),
            applied: 1,
        });
        statuses.enumerate().collect()
    }

    #[test]
    fn a_leader_is_one_that_all_know_and_that_is_among_them() {
        assert_eq!(agreed(&said([Some("8"), Some("8"), Some("8")])), Some(1));
        assert_eq!(agreed(&said([Some("8"), Some("8"), Some("9")])), None);
        assert_eq!(agreed(&said([Some("8"), Some("8"), None])), None);
        assert_eq!(agreed(&said([None, None, None])), None);
        assert_eq!(agreed(&said([Some("6"), Some("6"), Some("6")])), None);
        assert_eq!(agreed(&[]), None);
    }
}
