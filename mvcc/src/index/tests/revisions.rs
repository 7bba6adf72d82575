//! The stored form of revisions.

use super::super::Revision;

#[test]
fn keys_of_revisions_are_golden_ordered_and_read_back() {
    assert_eq!(Revision::new(0x0102_0304_0506_0708, 0x090a_0b0c).to_key(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    let (mains, subs) = ([0, 1, 255, 256, 1 << 40, i64::MAX], [0, 1, 255, 256, u32::MAX]);
    let all = mains.iter().flat_map(|main| subs.map(|sub| Revision::new(*main, sub))).collect::<Vec<_>>();
    assert!(all.is_sorted_by(|a, b| a < b && a.to_key() < b.to_key()));
    for revision in all {
        assert_eq!(Revision::from_key(&revision.to_key()), Some(revision));
    }
    for len in (0..20).filter(|len| *len != Revision::KEY_BYTES) {
        assert_eq!(Revision::from_key(&vec![0; len]), None, "{len} bytes");
    }
}
