//! Users' parameters, as the types PostgreSQL has inferred for them.
//!
//! A [`Value`] says what the client has; what it must become is known only once the statement is
//! prepared. Integers fit every numeric type, if they are in its range; text fits every type, by
//! PostgreSQL's own input syntax; everything else fits its own type. What does not fit is refused
//! here, with the SQLSTATE that PostgreSQL would give, before anything is sent.

use bytes::{BufMut, BytesMut};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::{SqlError, Value};
use postgres_types::{Format, IsNull, ToSql, Type, to_sql_checked};
use std::error::Error;

/// Binds a value to whatever type its parameter has. Errors of the fit come out as
/// [`super::StoreError::Refused`] with 22003 or 42804.
pub fn parameter(value: &Value) -> Parameter<'_> {
    Parameter(value)
}

/// See [`parameter`].
#[derive(Debug)]
pub struct Parameter<'a>(&'a Value);

impl ToSql for Parameter<'_> {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        if *self.0 == Value::Null {
            return Ok(IsNull::Yes);
        }
        write(self.0, ty, out)?;
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, ty: &Type) -> Format {
        match self.0 {
            Value::Text(_) => Format::Text,
            // Decimal digits are exact; the binary form of `numeric` would be the same digits,
            // packed.
            Value::Int(_) | Value::Float(_) if *ty == Type::NUMERIC => Format::Text,
            _ => Format::Binary,
        }
    }

    to_sql_checked!();
}

fn write(value: &Value, ty: &Type, out: &mut BytesMut) -> Result<(), SqlError> {
    match (value, ty) {
        (Value::Null, _) => {}
        (Value::Text(text), _) => out.put_slice(text.as_bytes()),
        (Value::Int(v), &Type::INT8) => out.put_i64(*v),
        (Value::Int(v), &Type::INT4) => out.put_i32(in_range(*v, ty)?),
        (Value::Int(v), &Type::INT2) => out.put_i16(in_range(*v, ty)?),
        (Value::Int(v), &Type::OID) => out.put_u32(in_range(*v, ty)?),
        (Value::Int(v), &Type::FLOAT8) => out.put_f64(*v as f64),
        (Value::Int(v), &Type::FLOAT4) => out.put_f32(*v as f32),
        (Value::Int(v), &Type::NUMERIC) => out.put_slice(v.to_string().as_bytes()),
        (Value::Float(v), &Type::FLOAT8) => out.put_f64(*v),
        (Value::Float(v), &Type::FLOAT4) => {
            if v.is_finite() && (*v as f32).is_infinite() {
                return Err(out_of_range(v, ty));
            }
            out.put_f32(*v as f32);
        }
        (Value::Float(v), &Type::NUMERIC) => out.put_slice(numeric(*v).as_bytes()),
        (Value::Bool(v), &Type::BOOL) => out.put_u8((*v).into()),
        (Value::Uuid(v), &Type::UUID) => out.put_slice(v),
        (Value::Bytes(v), &Type::BYTEA) => out.put_slice(v),
        (Value::Timestamp(v), &Type::TIMESTAMPTZ | &Type::TIMESTAMP) => out.put_i64(*v),
        _ => return Err(mismatch(value, ty)),
    }
    Ok(())
}

fn in_range<T: TryFrom<i64>>(v: i64, ty: &Type) -> Result<T, SqlError> {
    T::try_from(v).map_err(|_| out_of_range(&v, ty))
}

/// A number as PostgreSQL reads a `numeric`.
fn numeric(v: f64) -> String {
    match v {
        v if v.is_nan() => "NaN".into(),
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        v => v.to_string(),
    }
}

fn out_of_range(v: &dyn std::fmt::Display, ty: &Type) -> SqlError {
    SqlError::new(codes::OUT_OF_RANGE, format!("parameter {v} is out of range for type {ty}"))
}

fn mismatch(value: &Value, ty: &Type) -> SqlError {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Int(_) => "an integer",
        Value::Float(_) => "a floating-point number",
        Value::Text(_) => "text",
        Value::Bytes(_) => "bytes",
        Value::Uuid(_) => "a uuid",
        Value::Timestamp(_) => "a timestamp",
    };
    SqlError::new(codes::DATATYPE_MISMATCH, format!("a parameter is of type {ty} but {kind} was given"))
        .hint("Give a value of that type, or its text form.")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn bound(value: Value, ty: &Type) -> Result<(Format, Vec<u8>), SqlError> {
        let mut out = BytesMut::new();
        write(&value, ty, &mut out)?;
        Ok((Parameter(&value).encode_format(ty), out.to_vec()))
    }

    fn code(value: Value, ty: &Type) -> String {
        bound(value, ty).unwrap_err().code.into_owned()
    }

    #[test]
    fn integers_fit_every_numeric_type_within_its_range() {
        let is_text = |format| matches!(format, Format::Text);
        assert_eq!(bound(Value::Int(-2), &Type::INT2).unwrap().1, (-2i16).to_be_bytes());
        assert_eq!(bound(Value::Int(-2), &Type::INT4).unwrap().1, (-2i32).to_be_bytes());
        assert_eq!(bound(Value::Int(-2), &Type::FLOAT8).unwrap().1, (-2f64).to_be_bytes());
        let (format, text) = bound(Value::Int(i64::MIN), &Type::NUMERIC).unwrap();
        assert!(is_text(format) && text == i64::MIN.to_string().as_bytes());
        for (value, ty) in [(1 << 15, Type::INT2), (1 << 31, Type::INT4), (-1, Type::OID)] {
            assert_eq!(code(Value::Int(value), &ty), codes::OUT_OF_RANGE, "{ty}");
        }
        assert_eq!(code(Value::Float(1e300), &Type::FLOAT4), codes::OUT_OF_RANGE);
    }

    #[test]
    fn text_fits_every_type_and_the_rest_only_its_own() {
        for ty in [Type::INT4, Type::UUID, Type::TEXT, Type::JSONB, Type::INTERVAL] {
            let (format, raw) = bound(Value::Text("x".into()), &ty).unwrap();
            assert!(matches!(format, Format::Text) && raw == b"x");
        }
        assert_eq!(code(Value::Int(1), &Type::TEXT), codes::DATATYPE_MISMATCH);
        assert_eq!(code(Value::Bool(true), &Type::INT4), codes::DATATYPE_MISMATCH);
        assert_eq!(code(Value::Uuid([0; 16]), &Type::BYTEA), codes::DATATYPE_MISMATCH);
        assert_eq!(code(Value::Float(1.0), &Type::INT4), codes::DATATYPE_MISMATCH);
        assert_eq!(code(Value::Timestamp(0), &Type::DATE), codes::DATATYPE_MISMATCH);
    }
}
