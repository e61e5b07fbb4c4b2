//! The statements that a shard executes of one that writes to several shards. Pure.

use super::engine_run::FIRST_USER_OID;
use super::prepared::Values;
use crate::grammar::writes::{ChangeForm, InsertForm};
use crate::remote::clip::Clipped;
use bytes::{Bytes, BytesMut};
use evenkeel_postgres_session::row;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::pass_through::PassThroughStatement;
use evenkeel_protocol::{SqlError, TableSchema};

/// How a copy in the binary format begins, without options and without an extension.
const COPY_HEAD: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// How rows are inserted.
pub struct Batch<'a> {
    /// The table.
    pub table: &'a TableSchema,
    /// The formats of the rows' values.
    pub formats: &'a [i16],
    /// The INSERT, if it has more than rows.
    pub form: Option<&'a InsertForm>,
    /// The types of its parameters.
    pub types: &'a [u32],
    /// Its parameters.
    pub values: &'a Values,
}

impl Batch<'_> {
    /// Whether the rows are sent as a COPY, which is the cheapest way.
    pub fn is_copy(&self) -> bool {
        self.form.is_none() && self.formats.iter().all(|format| *format == 1)
    }

    /// The statement that inserts these rows, the bodies of DataRow messages.
    ///
    /// # Errors
    /// XX000: they are none.
    pub fn statement<'b>(&self, rows: impl Iterator<Item = &'b Bytes>) -> Result<PassThroughStatement, SqlError> {
        let columns: Vec<String> = self.table.columns.iter().map(|column| TableSchema::quote(&column.name)).collect();
        let columns = columns.join(", ");
        let schema = if self.table.name.contains('.') { "" } else { "public." };
        let relation = format!("{schema}{}", self.table.relation());
        if self.is_copy() {
            let mut data = BytesMut::from(&COPY_HEAD[..]);
            // A row of the binary format looks as a DataRow does.
            rows.for_each(|row| data.extend_from_slice(row));
            data.extend_from_slice(&(-1i16).to_be_bytes());
            return Ok(PassThroughStatement {
                sql: format!("COPY {relation} ({columns}) FROM STDIN (FORMAT binary)").into(),
                copy_data: Some(data.freeze()),
                ..PassThroughStatement::default()
            });
        }
        // What follows the rows names parameters of the user's.
        let with_parameters = self.form.is_some_and(|form| form.behind.contains('$'));
        let mut statement =
            if with_parameters { with_parameters_of(self.types, self.values) } else { empty(self.values) };
        let mut sql = match self.form {
            Some(form) => format!("INSERT INTO {} ({columns}) VALUES ", form.target),
            None => format!("INSERT INTO {relation} ({columns}) VALUES "),
        };
        for (number, row) in rows.enumerate() {
            sql.push_str(if number == 0 { "(" } else { ", (" });
            let values = row::values(row).filter(|values| values.len() == self.formats.len());
            let values = values.ok_or_else(|| SqlError::new(codes::INTERNAL, "a computed row that is none"))?;
            for (at, value) in values.into_iter().enumerate() {
                statement.parameters.push(value.map(|value| row.slice_ref(value)));
                statement.parameter_formats.push(self.formats[at]);
                statement.parameter_types.push(built_in(self.table.columns[at].type_oid));
                let comma = if at == 0 { "" } else { ", " };
                sql.push_str(&format!("{comma}${}", statement.parameters.len()));
            }
            sql.push(')');
        }
        if let Some(form) = self.form {
            sql.push_str(&form.behind);
        }
        statement.sql = sql.into();
        Ok(statement)
    }
}

/// A change, restricted to the rows that its shard owns.
pub fn with_clip(form: &ChangeForm, clip: Clipped, types: &[u32], values: &Values) -> PassThroughStatement {
    let mut statement = with_parameters_of(types, values);
    statement.sql = format!("{}{}{}", form.before, clip.sql, form.behind).into();
    statement.parameter_types.extend(clip.types);
    statement.parameter_formats.extend(clip.values.iter().map(|_| 1));
    statement.parameters.extend(clip.values.into_iter().map(Some));
    statement
}

/// A statement with the user's parameters, each with its format.
fn with_parameters_of(types: &[u32], values: &Values) -> PassThroughStatement {
    let typed = values.typed(types);
    PassThroughStatement {
        parameter_types: types.to_vec(),
        parameter_formats: typed.iter().map(|parameter| i16::from(parameter.binary)).collect(),
        parameters: values.parameters.clone(),
        ..empty(values)
    }
}

fn empty(values: &Values) -> PassThroughStatement {
    PassThroughStatement { result_formats: values.result_formats.clone(), ..PassThroughStatement::default() }
}

/// An object id that means the same on every server; 0 for that of a user's type, which the server
/// finds out by itself.
pub fn built_in(oid: u32) -> u32 {
    if oid < FIRST_USER_OID { oid } else { 0 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn table() -> TableSchema {
        let evenkeel_sql::Command::CreateTable { schema, .. } =
            evenkeel_sql::parse("CREATE TABLE t (id bigint PRIMARY KEY, v text)").unwrap()
        else {
            panic!()
        };
        schema
    }

    fn row(id: i64) -> Bytes {
        let body = [&2i16.to_be_bytes()[..], &8i32.to_be_bytes(), &id.to_be_bytes(), &(-1i32).to_be_bytes()];
        Bytes::from(body.concat())
    }

    #[test]
    fn plain_rows_are_copied() {
        let (table, values) = (table(), Values::default());
        let batch = Batch { table: &table, formats: &[1, 1], form: None, types: &[], values: &values };
        let rows = [row(1), row(2)];
        let statement = batch.statement(rows.iter()).unwrap();
        assert_eq!(&*statement.sql, "COPY public.\"t\" (\"id\", \"v\") FROM STDIN (FORMAT binary)");
        assert_eq!(statement.copy_data.unwrap().len(), 19 + 2 * rows[0].len() + 2);
    }

    #[test]
    fn rows_with_more_behind_them_are_parameters_behind_the_users() {
        let (table, values) =
            (table(), Values { parameters: vec![Some(Bytes::from_static(b"x"))], ..Values::default() });
        let form = InsertForm {
            table: "t".into(),
            rows: String::new(),
            target: "t AS x".into(),
            behind: " ON CONFLICT (id) DO UPDATE SET v = $1".into(),
            updates: true,
            in_order: true,
            reads: false,
            reads_itself: false,
        };
        let batch = Batch { table: &table, formats: &[1, 0], form: Some(&form), types: &[25], values: &values };
        let statement = batch.statement([row(1), row(2)].iter()).unwrap();
        assert_eq!(
            &*statement.sql,
            "INSERT INTO t AS x (\"id\", \"v\") VALUES ($2, $3), ($4, $5) ON CONFLICT (id) DO UPDATE SET v = $1"
        );
        assert_eq!(statement.parameter_formats, [0, 1, 0, 1, 0]);
        assert_eq!(statement.parameter_types, [25, 20, 25, 20, 25]);
        assert_eq!(statement.parameters.len(), 5);
    }
}
