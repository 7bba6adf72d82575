//! What is closed, and what is not.
#![allow(clippy::unwrap_used)]

use super::*;

fn all(connections_max: usize) -> Arc<Connections> {
    Arc::new(Connections::new(Limits { connections_max, ..Limits::default() }))
}

/// Ticks of 5 s until the connection is told to close; `None` if it is not within an hour.
fn closed_after(all: &Connections, connection: &Connection, mut each: impl FnMut()) -> Option<u64> {
    (1..=720).find_map(|ticks| {
        each();
        all.tick(Duration::from_secs(5));
        (connection.order() == Order::Close).then_some(ticks * 5)
    })
}

#[test]
fn the_number_of_connections_is_bounded() {
    let all = all(2);
    let first = all.admit().unwrap();
    let _second = all.admit().unwrap();
    assert!(all.admit().is_none());
    assert_eq!((all.open(), all.refused()), (2, 1));
    drop(first);
    assert!(all.admit().is_some());
}

#[test]
fn a_connection_that_says_nothing_or_drips_a_head_is_closed() {
    let all = all(9);
    let silent = all.admit().unwrap();
    assert_eq!(closed_after(&all, &silent.connection, || ()), Some(10));
    let dripping = all.admit().unwrap();
    let connection = Arc::clone(&dripping.connection);
    assert_eq!(closed_after(&all, &connection, || connection.on_read(false)), Some(10));
    assert_eq!(all.timed_out(), 2);
}

#[test]
fn an_idle_connection_is_kept_for_long_and_a_busy_one_for_ever() {
    let all = all(9);
    let place = all.admit().unwrap();
    let connection = Arc::clone(&place.connection);
    assert_eq!(closed_after(&all, &connection, || connection.begin().respond()), None);
    assert_eq!(closed_after(&all, &connection, || ()), Some(600));
}

#[test]
fn an_idle_client_over_http2_is_told_before_it_is_closed() {
    let all = all(9);
    let place = all.admit().unwrap();
    let connection = Arc::clone(&place.connection);
    connection.on_read(true);
    let mut told_after = 0;
    let closed = closed_after(&all, &connection, || told_after += u64::from(connection.order() == Order::Continue) * 5);
    assert_eq!((told_after, closed), (605, Some(1_205)));
    assert_eq!(all.timed_out(), 1);
}

#[test]
fn a_body_that_never_ends_is_closed_and_a_long_response_is_not() {
    let all = all(9);
    let place = all.admit().unwrap();
    let connection = Arc::clone(&place.connection);
    let mut request = connection.begin();
    request.respond();
    assert_eq!(closed_after(&all, &connection, || connection.on_write(true)), None);
    drop(request);
    let _request = connection.begin();
    assert_eq!(closed_after(&all, &connection, || connection.on_read(false)), Some(65));
}

#[test]
fn a_stream_between_members_lives_as_long_as_it_moves() {
    let all = Arc::new(Connections::new(Limits::for_peers()));
    let place = all.admit().unwrap();
    let connection = Arc::clone(&place.connection);
    connection.on_read(true);
    // A state that is being received: its request is not answered before the end.
    let request = connection.begin();
    assert_eq!(closed_after(&all, &connection, || connection.on_read(true)), None);
    drop(request);
    // A stream whose answer has begun may be silent for as long as it likes.
    let mut duplex = connection.begin();
    duplex.respond();
    assert_eq!(closed_after(&all, &connection, || ()), None);
    drop(duplex);
    let _silent = connection.begin();
    assert_eq!(closed_after(&all, &connection, || ()), Some(905));
}

#[test]
fn a_client_that_does_not_read_is_closed() {
    let all = all(9);
    let place = all.admit().unwrap();
    let connection = Arc::clone(&place.connection);
    let mut request = connection.begin();
    request.respond();
    connection.on_write(false);
    assert_eq!(closed_after(&all, &connection, || ()), Some(65));
}

#[test]
fn bytes_behind_a_running_request_do_not_count_as_a_late_head() {
    let all = all(9);
    let place = all.admit().unwrap();
    let connection = Arc::clone(&place.connection);
    let request = connection.begin();
    connection.on_read(false);
    drop(request);
    assert_eq!(connection.phase().0, Phase::Idle);
}

#[test]
fn a_request_that_never_ends_is_closed_although_others_begin_and_end() {
    let all = all(9);
    let place = all.admit().unwrap();
    let connection = Arc::clone(&place.connection);
    connection.on_read(true);
    assert_eq!(closed_after(&all, &connection, || drop(connection.begin())), None);
    let _stuck = connection.begin();
    assert_eq!(closed_after(&all, &connection, || drop(connection.begin())), Some(65));
}

#[test]
fn a_request_has_no_limit_once_it_may_be_patient() {
    let all = all(9);
    let place = all.admit().unwrap();
    let connection = Arc::clone(&place.connection);
    let mut waits = connection.begin();
    let patience = waits.patience().unwrap();
    patience.begin();
    assert_eq!(closed_after(&all, &connection, || ()), None);
    patience.begin();
    drop(waits);
    assert!(!connection.handled.any());
    // Nobody has said that it may.
    let mut unread = connection.begin();
    let _patience = unread.patience().unwrap();
    assert_eq!(closed_after(&all, &connection, || ()), Some(65));
    drop(unread);
    assert!(!connection.handled.any());
}

#[test]
fn a_client_that_does_not_take_one_answer_is_closed_although_it_takes_others() {
    let all = all(9);
    let place = all.admit().unwrap();
    let connection = Arc::clone(&place.connection);
    connection.on_read(true);
    let mut taken = connection.begin();
    taken.respond();
    assert_eq!(closed_after(&all, &connection, || taken.offer()), None);
    // What waits for something to answer is nobody's to take.
    taken.taken();
    assert_eq!(closed_after(&all, &connection, || connection.on_write(true)), None);
    let mut left = connection.begin();
    left.respond();
    left.offer();
    let closed = closed_after(&all, &connection, || {
        taken.offer();
        connection.on_write(true);
        drop(connection.begin());
    });
    assert_eq!(closed, Some(65));
    drop((left, taken));
    assert!(!connection.offered.any());
}
