//! Reads the fields of each command; the mirror of `encode`, where the numbers are described.

use bytes::Bytes;
use tally_mvcc::{
    Compare, CompareResult, CompareTarget, DeleteRequest, KeyRange, Op, PutRequest, RangeOptions, RangeRequest,
    SortOrder, SortTarget, TxnRequest,
};

use crate::alarm::{AlarmAction, AlarmCommand, AlarmKind};
use crate::codec::Fields;
use crate::command::{Command, DecodeError, TXN_DEPTH_MAX};
use crate::member::{Member, NO_DIRECTORY, Record};

pub(crate) fn body(tag: u8, fields: Bytes) -> Result<Command, DecodeError> {
    let fields = Fields::new(fields);
    Ok(match tag {
        1 => Command::Put(put(fields)?),
        2 => Command::DeleteRange(delete(fields)?),
        3 => Command::Txn(txn(fields, TXN_DEPTH_MAX)?),
        4 => Command::Compact { revision: single_integer(fields, "compact")? },
        5 => Command::Alarm(alarm(fields)?),
        6 => {
            let level = single_integer(fields, "set feature level")?;
            let level =
                u32::try_from(level).map_err(|_| DecodeError::WrongType { command: "set feature level", number: 1 })?;
            Command::SetFeatureLevel { level }
        }
        7 => Command::SetMember(member(fields)?),
        8 => Command::RemoveMember { id: single_integer(fields, "remove member")? as u64 },
        9 => {
            let (id, ttl_s) = pair(fields, "grant lease")?;
            Command::LeaseGrant { id, ttl_s }
        }
        10 => Command::LeaseRevoke { id: single_integer(fields, "revoke lease")? },
        11 => checkpoint(fields)?,
        12 => expire(fields)?,
        tag => return Err(DecodeError::UnknownCommand { tag }),
    })
}

fn single_integer(mut fields: Fields, command: &'static str) -> Result<i64, DecodeError> {
    let mut value = None;
    while let Some((number, field)) = fields.next()? {
        match number {
            1 => value = Some(field.integer(command, number)?),
            _ => return Err(DecodeError::UnknownField { command, number }),
        }
    }
    value.ok_or(DecodeError::Missing { command, number: 1 })
}

/// Two integers, of which the second is left out if it is 0.
fn pair(mut fields: Fields, command: &'static str) -> Result<(i64, i64), DecodeError> {
    let (mut first, mut second) = (None, 0);
    while let Some((number, field)) = fields.next()? {
        match number {
            1 => first = Some(field.integer(command, number)?),
            2 => second = field.integer(command, number)?,
            _ => return Err(DecodeError::UnknownField { command, number }),
        }
    }
    Ok((first.ok_or(DecodeError::Missing { command, number: 1 })?, second))
}

fn checkpoint(mut fields: Fields) -> Result<Command, DecodeError> {
    const NAME: &str = "checkpoint of leases";
    let (mut term, mut remaining) = (None, Vec::new());
    while let Some((number, field)) = fields.next()? {
        match number {
            1 => term = Some(field.integer(NAME, number)? as u64),
            2 => remaining.push(pair(field.message(NAME, number)?, NAME)?),
            _ => return Err(DecodeError::UnknownField { command: NAME, number }),
        }
    }
    let term = term.ok_or(DecodeError::Missing { command: NAME, number: 1 })?;
    Ok(Command::LeaseCheckpoint { term, remaining })
}

fn expire(mut fields: Fields) -> Result<Command, DecodeError> {
    const NAME: &str = "expiry of leases";
    let (mut term, mut ids) = (None, Vec::new());
    while let Some((number, field)) = fields.next()? {
        match number {
            1 => term = Some(field.integer(NAME, number)? as u64),
            2 => ids.push(field.integer(NAME, number)?),
            _ => return Err(DecodeError::UnknownField { command: NAME, number }),
        }
    }
    Ok(Command::LeaseExpire { term: term.ok_or(DecodeError::Missing { command: NAME, number: 1 })?, ids })
}

fn put(mut fields: Fields) -> Result<PutRequest, DecodeError> {
    const NAME: &str = "put";
    let (mut key, mut value) = (None, None);
    let (mut lease, mut prev_kv, mut ignore_value, mut ignore_lease) = (0, false, false, false);
    while let Some((number, field)) = fields.next()? {
        match number {
            1 => key = Some(field.bytes(NAME, number)?),
            2 => value = Some(field.bytes(NAME, number)?),
            3 => lease = field.integer(NAME, number)?,
            4 => prev_kv = field.boolean(NAME, number)?,
            5 => ignore_value = field.boolean(NAME, number)?,
            6 => ignore_lease = field.boolean(NAME, number)?,
            _ => return Err(DecodeError::UnknownField { command: NAME, number }),
        }
    }
    let key = key.ok_or(DecodeError::Missing { command: NAME, number: 1 })?;
    let value = value.ok_or(DecodeError::Missing { command: NAME, number: 2 })?;
    Ok(PutRequest { key, value, lease, prev_kv, ignore_value, ignore_lease })
}

fn key_range(mut fields: Fields) -> Result<KeyRange, DecodeError> {
    const NAME: &str = "key range";
    let (mut start, mut end, mut unbounded) = (None, None, false);
    while let Some((number, field)) = fields.next()? {
        match number {
            1 => start = Some(field.bytes(NAME, number)?),
            2 => end = Some(field.bytes(NAME, number)?),
            3 => unbounded = field.boolean(NAME, number)?,
            _ => return Err(DecodeError::UnknownField { command: NAME, number }),
        }
    }
    let start = start.ok_or(DecodeError::Missing { command: NAME, number: 1 })?;
    let end = match (end, unbounded) {
        (None, false) => Bytes::new(),
        (Some(end), false) => end,
        (None, true) => Bytes::from_static(b"\0"),
        (Some(_), true) => return Err(DecodeError::WrongType { command: NAME, number: 3 }),
    };
    KeyRange::new(start, end).map_err(|_| DecodeError::WrongType { command: NAME, number: 1 })
}

fn delete(mut fields: Fields) -> Result<DeleteRequest, DecodeError> {
    const NAME: &str = "delete";
    let (mut range, mut prev_kv) = (None, false);
    while let Some((number, field)) = fields.next()? {
        match number {
            1 => range = Some(key_range(field.message(NAME, number)?)?),
            2 => prev_kv = field.boolean(NAME, number)?,
            _ => return Err(DecodeError::UnknownField { command: NAME, number }),
        }
    }
    Ok(DeleteRequest { range: range.ok_or(DecodeError::Missing { command: NAME, number: 1 })?, prev_kv })
}

fn range(mut fields: Fields) -> Result<RangeRequest, DecodeError> {
    const NAME: &str = "range";
    let (mut range, mut revision, mut options) = (None, 0, RangeOptions::default());
    while let Some((number, field)) = fields.next()? {
        match number {
            1 => range = Some(key_range(field.message(NAME, number)?)?),
            2 => revision = field.integer(NAME, number)?,
            3 => options.limit = field.integer(NAME, number)?,
            4 => {
                options.sort_order = match field.integer(NAME, number)? {
                    0 => SortOrder::None,
                    1 => SortOrder::Ascend,
                    2 => SortOrder::Descend,
                    _ => return Err(DecodeError::WrongType { command: NAME, number }),
                }
            }
            5 => {
                options.sort_target = match field.integer(NAME, number)? {
                    0 => SortTarget::Key,
                    1 => SortTarget::Version,
                    2 => SortTarget::Create,
                    3 => SortTarget::Mod,
                    4 => SortTarget::Value,
                    _ => return Err(DecodeError::WrongType { command: NAME, number }),
                }
            }
            6 => options.keys_only = field.boolean(NAME, number)?,
            7 => options.count_only = field.boolean(NAME, number)?,
            8 => options.min_mod_revision = field.integer(NAME, number)?,
            9 => options.max_mod_revision = field.integer(NAME, number)?,
            10 => options.min_create_revision = field.integer(NAME, number)?,
            11 => options.max_create_revision = field.integer(NAME, number)?,
            _ => return Err(DecodeError::UnknownField { command: NAME, number }),
        }
    }
    let range = range.ok_or(DecodeError::Missing { command: NAME, number: 1 })?;
    Ok(RangeRequest { range, revision, options })
}

fn txn(mut fields: Fields, depth_left: usize) -> Result<TxnRequest, DecodeError> {
    const NAME: &str = "transaction";
    let Some(depth_left) = depth_left.checked_sub(1) else { return Err(DecodeError::TooDeep) };
    let mut request = TxnRequest { compares: Vec::new(), success: Vec::new(), failure: Vec::new() };
    while let Some((number, field)) = fields.next()? {
        match number {
            1 => request.compares.push(compare(field.message(NAME, number)?)?),
            2 => request.success.push(operation(field.message(NAME, number)?, depth_left)?),
            3 => request.failure.push(operation(field.message(NAME, number)?, depth_left)?),
            _ => return Err(DecodeError::UnknownField { command: NAME, number }),
        }
    }
    Ok(request)
}

fn compare(mut fields: Fields) -> Result<Compare, DecodeError> {
    const NAME: &str = "compare";
    let (mut range, mut result, mut target) = (None, CompareResult::Equal, None);
    while let Some((number, field)) = fields.next()? {
        match number {
            1 => range = Some(key_range(field.message(NAME, number)?)?),
            2 => {
                result = match field.integer(NAME, number)? {
                    0 => CompareResult::Equal,
                    1 => CompareResult::Greater,
                    2 => CompareResult::Less,
                    3 => CompareResult::NotEqual,
                    _ => return Err(DecodeError::WrongType { command: NAME, number }),
                }
            }
            3 => target = Some(CompareTarget::Version(field.integer(NAME, number)?)),
            4 => target = Some(CompareTarget::Create(field.integer(NAME, number)?)),
            5 => target = Some(CompareTarget::Mod(field.integer(NAME, number)?)),
            6 => target = Some(CompareTarget::Value(field.bytes(NAME, number)?)),
            7 => target = Some(CompareTarget::Lease(field.integer(NAME, number)?)),
            _ => return Err(DecodeError::UnknownField { command: NAME, number }),
        }
    }
    let range = range.ok_or(DecodeError::Missing { command: NAME, number: 1 })?;
    let target = target.ok_or(DecodeError::Missing { command: NAME, number: 3 })?;
    Ok(Compare { range, result, target })
}

fn operation(mut fields: Fields, depth_left: usize) -> Result<Op, DecodeError> {
    const NAME: &str = "operation";
    let Some((number, field)) = fields.next()? else { return Err(DecodeError::Missing { command: NAME, number: 1 }) };
    let message = field.message(NAME, number)?;
    let op = match number {
        1 => Op::Range(range(message)?),
        2 => Op::Put(put(message)?),
        3 => Op::Delete(delete(message)?),
        4 => Op::Txn(txn(message, depth_left)?),
        _ => return Err(DecodeError::UnknownField { command: NAME, number }),
    };
    match fields.next()? {
        None => Ok(op),
        Some((number, _)) => Err(DecodeError::UnknownField { command: NAME, number }),
    }
}

fn alarm(mut fields: Fields) -> Result<AlarmCommand, DecodeError> {
    const NAME: &str = "alarm";
    let (mut action, mut member_id, mut kind) = (None, 0, None);
    while let Some((number, field)) = fields.next()? {
        match number {
            1 => action = AlarmAction::from_number(field.integer(NAME, number)?),
            2 => member_id = field.integer(NAME, number)? as u64,
            3 => kind = u8::try_from(field.integer(NAME, number)?).ok().and_then(AlarmKind::from_number),
            _ => return Err(DecodeError::UnknownField { command: NAME, number }),
        }
    }
    let action = action.ok_or(DecodeError::Missing { command: NAME, number: 1 })?;
    let kind = kind.ok_or(DecodeError::Missing { command: NAME, number: 3 })?;
    Ok(AlarmCommand { action, member_id, kind })
}

const MEMBER: &str = "member";

pub(crate) fn member(mut fields: Fields) -> Result<Member, DecodeError> {
    fn text(bytes: Bytes, number: u8) -> Result<String, DecodeError> {
        String::from_utf8(bytes.to_vec()).map_err(|_| DecodeError::WrongType { command: MEMBER, number })
    }
    let (mut id, mut name, mut client_urls, mut directory) = (None, None, Vec::new(), NO_DIRECTORY);
    while let Some((number, field)) = fields.next()? {
        match number {
            1 => id = Some(field.integer(MEMBER, number)? as u64),
            2 => name = Some(text(field.bytes(MEMBER, number)?, number)?),
            // Retired: the membership in the log alone says where a member's peers reach it.
            3 => drop(field.bytes(MEMBER, number)?),
            4 => client_urls.push(text(field.bytes(MEMBER, number)?, number)?),
            5 => {
                let bytes = field.bytes(MEMBER, number)?;
                directory = bytes[..].try_into().map_err(|_| DecodeError::WrongType { command: MEMBER, number })?;
            }
            _ => return Err(DecodeError::UnknownField { command: MEMBER, number }),
        }
    }
    let id = id.ok_or(DecodeError::Missing { command: MEMBER, number: 1 })?;
    let name = name.ok_or(DecodeError::Missing { command: MEMBER, number: 2 })?;
    Ok(Member { id, name, client_urls, directory })
}

/// A record of the member bucket: a member's fields, or field 6 alone for one that was removed.
pub(crate) fn member_record(record: Bytes) -> Result<Record, DecodeError> {
    let mut fields = Fields::new(record.clone());
    let Some((6, id)) = fields.next()? else { return member(Fields::new(record)).map(Record::Member) };
    let id = id.integer(MEMBER, 6)? as u64;
    match fields.next()? {
        None => Ok(Record::Removed { id }),
        Some((number, _)) => Err(DecodeError::UnknownField { command: MEMBER, number }),
    }
}
