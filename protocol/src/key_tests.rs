#![allow(clippy::unwrap_used)]
use super::*;
use proptest::prelude::*;

fn value_of(kind: KeyType) -> BoxedStrategy<KeyValue> {
    let edges = |least: i64, most: i64| {
        prop_oneof![Just(least), Just(most), Just(0), Just(-1), Just(1), least..=most].prop_map(KeyValue::Int)
    };
    match kind {
        KeyType::SmallInt => edges(i64::from(i16::MIN), i64::from(i16::MAX)).boxed(),
        KeyType::Integer => edges(i64::from(i32::MIN), i64::from(i32::MAX)).boxed(),
        KeyType::BigInt => edges(i64::MIN, i64::MAX).boxed(),
        KeyType::TimestampTz => {
            prop_oneof![Just(i64::MIN), Just(i64::MAX), any::<i64>()].prop_map(KeyValue::Timestamp).boxed()
        }
        // PostgreSQL's text holds no NUL.
        KeyType::Text => "[\u{1}-\u{3}a-cé\u{10FFFF}]{0,6}".prop_map(KeyValue::Text).boxed(),
        KeyType::Bytea => proptest::collection::vec(prop_oneof![Just(0u8), Just(0xFF), Just(1), any::<u8>()], 0..6)
            .prop_map(|v| KeyValue::Bytes(v.into()))
            .boxed(),
        // Its keys tell values apart and have no order; it is not among the kinds drawn below.
        KeyType::Opaque => proptest::collection::vec(any::<u8>(), 0..6).prop_map(|v| KeyValue::Bytes(v.into())).boxed(),
        KeyType::Uuid => {
            prop_oneof![Just([0u8; 16]), Just([0xFF; 16]), any::<[u8; 16]>()].prop_map(KeyValue::Uuid).boxed()
        }
    }
}

fn kind() -> impl Strategy<Value = KeyType> {
    prop_oneof![
        Just(KeyType::SmallInt),
        Just(KeyType::Integer),
        Just(KeyType::BigInt),
        Just(KeyType::Text),
        Just(KeyType::Uuid),
        Just(KeyType::Bytea),
        Just(KeyType::TimestampTz),
    ]
}

/// A codec of one to three columns and two keys for it.
fn codec_and_keys() -> impl Strategy<Value = (KeyCodec, Vec<KeyValue>, Vec<KeyValue>)> {
    proptest::collection::vec(kind(), 1..4).prop_flat_map(|types| {
        let key: Vec<_> = types.iter().map(|t| value_of(*t)).collect();
        (Just(KeyCodec::new(types)), key.clone(), key)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn encoding_keeps_the_order_of_every_type_and_composite((codec, a, b) in codec_and_keys()) {
        // The derived order of KeyValue is PostgreSQL's: numeric, bytewise, column after column.
        let (ka, kb) = (codec.encode(&a).unwrap(), codec.encode(&b).unwrap());
        prop_assert_eq!(a.cmp(&b), ka.cmp(&kb));
    }

    #[test]
    fn decoding_reverses_encoding((codec, a, _) in codec_and_keys()) {
        let key = codec.encode(&a).unwrap();
        prop_assert_eq!(codec.decode(&key).unwrap(), a.clone());
        let binary: Vec<Bytes> = a.iter().zip(&codec.types).map(|(v, t)| v.to_binary(*t)).collect();
        let again = codec.encode_binary(binary.iter().map(|b| Some(b.as_ref()))).unwrap();
        prop_assert_eq!(again, key);
    }

    #[test]
    fn nothing_lies_between_a_key_and_its_successor((codec, a, b) in codec_and_keys()) {
        let (ka, kb) = (codec.encode(&a).unwrap(), codec.encode(&b).unwrap());
        match codec.successor(&ka).unwrap() {
            Some(next) => {
                prop_assert!(next > ka);
                prop_assert!(codec.decode(&next).is_ok(), "a split key must be a whole key");
                prop_assert!(!(kb > ka && kb < next), "{:?} lies between", b);
            }
            None => prop_assert!(kb <= ka),
        }
    }

    #[test]
    fn hex_round_trips(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
        let key = Key(bytes.into());
        prop_assert_eq!(Key::from_hex(&key.to_hex()), Some(key));
    }

    #[test]
    fn a_text_that_is_not_hexadecimal_is_refused(text in "[0-9a-fA-F+\\- ]{1,6}") {
        let hex = text.len() % 2 == 0 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        prop_assert_eq!(Key::from_hex(&text).is_some(), hex);
    }

    #[test]
    fn decoding_garbage_is_an_error_or_reversible(bytes in proptest::collection::vec(any::<u8>(), 0..24), types in proptest::collection::vec(kind(), 1..4)) {
        let codec = KeyCodec::new(types);
        let key = Key(bytes.into());
        if let Ok(values) = codec.decode(&key) {
            prop_assert_eq!(codec.encode(&values).unwrap(), key);
        }
    }
}

#[test]
fn a_prefix_sorts_before_what_extends_it() {
    let codec = KeyCodec::new(vec![KeyType::Text, KeyType::Integer]);
    let key = |s: &str, n| codec.encode(&[KeyValue::Text(s.into()), KeyValue::Int(n)]).unwrap();
    assert!(key("a", i64::from(i32::MAX)) < key("aa", i64::from(i32::MIN)));
    assert!(codec.encode_prefix(&[KeyValue::Text("a".into())]).unwrap() < key("a", i64::from(i32::MIN)));
}

#[test]
fn wrong_values_are_refused() {
    let codec = KeyCodec::new(vec![KeyType::SmallInt]);
    assert!(matches!(codec.encode(&[KeyValue::Int(40_000)]), Err(KeyError::OutOfRange { column: 1, .. })));
    assert!(matches!(codec.encode(&[KeyValue::Text("x".into())]), Err(KeyError::WrongType { .. })));
    assert!(matches!(codec.encode(&[]), Err(KeyError::WrongCount { expected: 1, found: 0 })));
    let text = KeyCodec::new(vec![KeyType::Text]);
    assert!(matches!(text.encode(&[KeyValue::Text("x".repeat(3000))]), Err(KeyError::TooLong { .. })));
}
