//! `--feature-gates`: what etcd's gates switch is here always on, or has nothing to switch.

use super::ConfigError;
use super::flags::LOCAL_ADDRESS;
use super::values::parse_bool;

pub(super) const FLAG: &str = "feature-gates";

/// The gates of etcd, and why one cannot be opened; those without a reason may have either value.
const GATES: [(&str, Option<&str>); 10] = [
    ("AllAlpha", Some("it includes SetMemberLocalAddr, which cannot be opened; name the gates that are meant")),
    ("AllBeta", None),
    ("CompactHashCheck", None),
    ("FastLeaseKeepAlive", None),
    ("InitialCorruptCheck", None),
    ("LeaseCheckpoint", None),
    ("LeaseCheckpointPersist", None),
    ("SetMemberLocalAddr", Some(LOCAL_ADDRESS)),
    ("StopGRPCServiceOnDefrag", None),
    ("TxnModeWriteWithSharedBuffer", None),
];

/// Reads `Gate=true,Gate=false,…` as etcd does, and refuses what cannot be done or is not known.
pub(super) fn check(text: &str) -> Result<(), ConfigError> {
    let invalid = |why: String| Err(ConfigError::Invalid { name: FLAG, why });
    for item in text.split(',').filter(|item| !item.is_empty()) {
        let Some((gate, value)) = item.split_once('=') else {
            return invalid(format!("{:?} must have the form Gate=true or Gate=false", item.trim()));
        };
        let (gate, value) = (gate.trim(), value.trim());
        let Some(open) = parse_bool(value) else {
            return invalid(format!("the value {value:?} of {gate} must be true or false"));
        };
        match GATES.iter().find(|(known, _)| *known == gate) {
            Some(&(_, Some(why))) if open => {
                return Err(ConfigError::Refused { name: FLAG, value: format!("{gate}={value}"), why });
            }
            Some(_) => {}
            None => {
                let known: Vec<&str> = GATES.iter().map(|(known, _)| *known).collect();
                return invalid(format!("there is no gate {gate:?}; known are {}", known.join(", ")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        check(text).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn gates_that_change_nothing_may_have_either_value() {
        for text in ["", ",", "CompactHashCheck=true", " InitialCorruptCheck = T ,LeaseCheckpoint=0,AllBeta=true"] {
            assert_eq!(error(text), "", "{text}");
        }
        assert_eq!(error("SetMemberLocalAddr=false,AllAlpha=false"), "");
    }

    #[test]
    fn what_cannot_be_opened_is_refused_with_the_reason() {
        let local = error("LeaseCheckpoint=true,SetMemberLocalAddr=true");
        assert!(local.contains("--feature-gates=SetMemberLocalAddr=true") && local.contains("ip route"), "{local}");
        assert!(error("AllAlpha=1").contains("SetMemberLocalAddr"));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(error("NoSuch=true").contains("\"NoSuch\""));
        assert!(error("LeaseCheckpoint").contains("Gate=true"));
        assert!(error("LeaseCheckpoint=maybe").contains("\"maybe\""));
        assert!(error("leasecheckpoint=true").contains("LeaseCheckpoint"));
    }
}
