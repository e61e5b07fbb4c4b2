//! Parses the statements that a replica sends. Pure, and deliberately narrow: any other text is an
//! error.

use super::statement::{Condition, Expr, OnConflict, Statement, Wanted};
use super::tokens::{Token, tokens};

/// The statements of a simple query.
pub fn parse_all(sql: &str) -> Result<Vec<Statement>, String> {
    if sql.contains("CREATE SCHEMA evenkeel") {
        return Ok(vec![Statement::MakeSchema]);
    }
    if sql.contains("TRUNCATE evenkeel.applied") {
        return Ok(vec![Statement::Clear]);
    }
    sql.split(';').filter(|piece| !piece.trim().is_empty()).map(parse).collect()
}

/// One statement.
pub fn parse(sql: &str) -> Result<Statement, String> {
    for (part, statement) in [
        ("pg_namespace", Statement::HasSchema),
        ("pg_relation_size", Statement::RelationSize),
        ("pg_type", Statement::ArrayTypes),
        ("pg_terminate_backend", Statement::EndSessions),
        ("pg_current_snapshot", Statement::Pin),
    ] {
        if sql.contains(part) {
            return Ok(statement);
        }
    }
    let mut parser = Parser { tokens: tokens(sql)?, at: 0 };
    let statement = parser.statement(sql)?;
    if parser.at < parser.tokens.len() {
        return Err(format!("{:?} is left over", &parser.tokens[parser.at..]));
    }
    Ok(statement)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    /// Goes past these words if they come next.
    fn words(&mut self, words: &str) -> bool {
        let wanted: Vec<&str> = words.split(' ').collect();
        let is = |(n, word): (usize, &&str)| matches!(self.tokens.get(self.at + n), Some(Token::Word(w)) if w == word);
        let found = wanted.iter().enumerate().all(is);
        if found {
            self.at += wanted.len();
        }
        found
    }

    fn sign(&mut self, sign: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Sign(s)) if s == sign);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), String> {
        if self.sign(sign) { Ok(()) } else { Err(format!("{sign} expected at {:?}", self.peek())) }
    }

    fn name(&mut self) -> Result<String, String> {
        match self.next() {
            Some(Token::Word(name) | Token::Name(name)) => Ok(name),
            other => Err(format!("a name expected at {other:?}")),
        }
    }

    /// A table's name; users' tables without their schema.
    fn table(&mut self) -> Result<String, String> {
        let name = self.name()?;
        if !self.sign(".") {
            return Ok(name);
        }
        let table = self.name()?;
        Ok(if name == "public" { table } else { format!("{name}.{table}") })
    }

    fn list<T>(&mut self, mut one: impl FnMut(&mut Parser) -> Result<T, String>) -> Result<Vec<T>, String> {
        let mut all = vec![one(self)?];
        while self.sign(",") {
            all.push(one(self)?);
        }
        Ok(all)
    }

    fn in_brackets<T>(&mut self, one: impl FnMut(&mut Parser) -> Result<T, String>) -> Result<Vec<T>, String> {
        self.expect("(")?;
        let all = self.list(one)?;
        self.expect(")")?;
        Ok(all)
    }

    fn statement(&mut self, sql: &str) -> Result<Statement, String> {
        if self.words("begin") || self.words("start transaction") {
            let repeatable = self.words("isolation level repeatable read");
            _ = self.words("isolation level read committed");
            let writes = if self.words("read write") { Some(true) } else { self.words("read only").then_some(false) };
            return Ok(Statement::Begin { repeatable, writes });
        }
        if self.words("commit") {
            return Ok(Statement::Commit);
        }
        if self.words("rollback to savepoint") {
            _ = self.name()?;
            return Ok(Statement::RollbackTo);
        }
        if self.words("rollback") {
            return Ok(Statement::Rollback);
        }
        if self.words("savepoint") {
            _ = self.name()?;
            return Ok(Statement::Savepoint);
        }
        if self.words("set") {
            return self.set();
        }
        if self.words("create table") {
            return self.create();
        }
        if self.words("insert into") {
            return self.insert();
        }
        if self.words("update") {
            return self.update();
        }
        if self.words("delete from") {
            return self.delete();
        }
        if self.words("declare") {
            let name = self.name()?;
            _ = self.words("no scroll");
            if !self.words("cursor for select") {
                return Err("CURSOR FOR SELECT expected".into());
            }
            return Ok(Statement::Declare(name, Box::new(self.select(sql)?)));
        }
        if self.words("fetch forward") {
            let Some(Token::Number(rows)) = self.next() else { return Err("a number expected".into()) };
            if !self.words("from") {
                return Err("FROM expected".into());
            }
            return Ok(Statement::Fetch(rows.max(0) as usize, self.name()?));
        }
        if self.words("close") {
            return Ok(Statement::Close(self.name()?));
        }
        if self.words("select") {
            if sql.trim() == "SELECT 1" {
                self.at = self.tokens.len();
                return Ok(Statement::Nothing);
            }
            return self.select(sql);
        }
        Err("an unknown statement".into())
    }

    fn set(&mut self) -> Result<Statement, String> {
        let rest: Vec<Token> = self.tokens[self.at..].to_vec();
        self.at = self.tokens.len();
        let word = |word: &str| rest.iter().any(|token| matches!(token, Token::Word(w) if w == word));
        if word("local") && word("synchronous_commit") {
            return Ok(Statement::SyncCommit);
        }
        if word("default_transaction_read_only") {
            return Ok(Statement::ReadOnly);
        }
        if word("lock_timeout") {
            let text = rest.iter().find_map(|token| match token {
                Token::Text(text) => Some(text.as_str()),
                _ => None,
            });
            let text = text.ok_or("a time expected")?;
            let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
            let number: u64 = digits.parse().map_err(|_| "a time expected")?;
            return Ok(Statement::LockTimeout(if unit == "s" { number * 1_000 } else { number }));
        }
        Ok(Statement::Nothing)
    }

    fn create(&mut self) -> Result<Statement, String> {
        _ = self.words("if not exists");
        let table = self.table()?;
        self.expect("(")?;
        let (mut columns, mut key) = (Vec::new(), Vec::new());
        loop {
            if self.words("primary key") {
                key = self.in_brackets(Parser::name)?;
            } else {
                let column = self.name()?;
                columns.push((column, type_oid(&self.name()?)?));
                while !matches!(self.peek(), Some(Token::Sign(s)) if s == "," || s == ")") {
                    self.at += 1;
                }
            }
            if !self.sign(",") {
                break;
            }
        }
        self.expect(")")?;
        Ok(Statement::Create(table, columns, key))
    }

    fn insert(&mut self) -> Result<Statement, String> {
        let table = self.table()?;
        if self.words("as") {
            self.name()?;
        }
        let columns = self.in_brackets(Parser::name)?;
        let (values, arrays) = if self.words("values") {
            (self.in_brackets(Parser::expr)?, false)
        } else if self.words("select") && self.sign("*") && self.words("from unnest") {
            (self.in_brackets(Parser::expr)?, true)
        } else {
            return Err("VALUES or unnest expected".into());
        };
        let mut conflict = OnConflict::Fail;
        if self.words("on conflict") {
            if matches!(self.peek(), Some(Token::Sign(s)) if s == "(") {
                self.in_brackets(Parser::name)?;
            }
            conflict = if self.words("do nothing") {
                OnConflict::Nothing
            } else if self.words("do update set") {
                OnConflict::Update(self.list(Parser::assignment)?)
            } else {
                return Err("DO NOTHING or DO UPDATE expected".into());
            };
        }
        let returning = self.returning()?;
        Ok(Statement::Insert { table, columns, values, arrays, conflict, returning })
    }

    fn assignment(&mut self) -> Result<(String, Expr), String> {
        let column = self.name()?;
        self.expect("=")?;
        Ok((column, self.expr()?))
    }

    fn update(&mut self) -> Result<Statement, String> {
        let table = self.table()?;
        if self.words("as") {
            self.name()?;
        }
        if !self.words("set") {
            return Err("SET expected".into());
        }
        let set = self.list(Parser::assignment)?;
        let given = if self.words("from unnest") { self.given()? } else { Vec::new() };
        let filter = self.filter()?;
        Ok(Statement::Update { table, set, given, filter, returning: self.returning()? })
    }

    fn delete(&mut self) -> Result<Statement, String> {
        let table = self.table()?;
        if self.words("as") {
            self.name()?;
        }
        let given = if self.words("using unnest") { self.given()? } else { Vec::new() };
        let filter = self.filter()?;
        Ok(Statement::Delete { table, given, filter, returning: self.returning()? })
    }

    /// The arrays of `unnest(…) AS given(…)`: their parameters and names.
    fn given(&mut self) -> Result<Vec<(usize, String)>, String> {
        let parameters = self.in_brackets(Parser::expr)?;
        if !self.words("as given") {
            return Err("given expected".into());
        }
        let names = self.in_brackets(Parser::name)?;
        let given = parameters.into_iter().zip(names).map(|(parameter, name)| match parameter {
            Expr::Parameter(parameter) => Ok((parameter, name)),
            _ => Err("a parameter expected".to_string()),
        });
        given.collect()
    }

    fn select(&mut self, sql: &str) -> Result<Statement, String> {
        let wanted = if sql.contains("count(*)") {
            while !matches!(self.peek(), Some(Token::Word(w)) if w == "from") && self.at < self.tokens.len() {
                self.at += 1;
            }
            if sql.contains("hash_record_extended") { Wanted::Checksum } else { Wanted::Sizes }
        } else if sql.contains("TABLESAMPLE") {
            Wanted::Rows(self.list(Parser::sampled)?)
        } else {
            Wanted::Rows(self.list(Parser::expr)?)
        };
        if !self.words("from") {
            return Err("FROM expected".into());
        }
        let table = self.table()?;
        // Tables are so small here that every sample is all of them.
        if self.words("tablesample system") {
            self.skip_brackets()?;
        }
        let filter = self.filter()?;
        if self.words("order by") {
            self.list(Parser::expr)?;
        }
        let limit = if self.words("limit") { Some(self.expr()?) } else { None };
        let locks = self.words("for update");
        Ok(Statement::Select { table, wanted, filter, limit, locks })
    }

    /// A column of a sample: one of the key, or what the row takes, which is all in brackets.
    fn sampled(&mut self) -> Result<Expr, String> {
        if !matches!(self.peek(), Some(Token::Sign(sign)) if sign == "(") {
            return self.expr();
        }
        self.skip_brackets()?;
        self.expect("::")?;
        self.name()?;
        Ok(Expr::RowSize)
    }

    fn skip_brackets(&mut self) -> Result<(), String> {
        self.expect("(")?;
        let mut open = 1;
        while open > 0 {
            match self.next() {
                Some(Token::Sign(sign)) if sign == "(" => open += 1,
                Some(Token::Sign(sign)) if sign == ")" => open -= 1,
                Some(_) => {}
                None => return Err("a bracket is open".into()),
            }
        }
        Ok(())
    }

    fn returning(&mut self) -> Result<Vec<Expr>, String> {
        if self.words("returning") { self.list(Parser::expr) } else { Ok(Vec::new()) }
    }

    fn filter(&mut self) -> Result<Vec<Condition>, String> {
        let mut all = Vec::new();
        if !self.words("where") {
            return Ok(all);
        }
        loop {
            self.condition(&mut all)?;
            if !self.words("and") {
                return Ok(all);
            }
        }
    }

    fn condition(&mut self, all: &mut Vec<Condition>) -> Result<(), String> {
        // `(a = 1 AND b = 2)`, as a user's condition stands before a clip.
        let before = self.at;
        if self.sign("(") {
            let mut inner = Vec::new();
            let whole = loop {
                if self.condition(&mut inner).is_err() {
                    break false;
                }
                if !self.words("and") {
                    break self.sign(")");
                }
            };
            if whole {
                all.extend(inner);
                return Ok(());
            }
            self.at = before;
        }
        let left = self.side()?;
        let operator = match self.next() {
            Some(Token::Sign(sign)) if ["=", "<", "<=", ">", ">="].contains(&sign.as_str()) => sign,
            other => return Err(format!("a comparison expected at {other:?}")),
        };
        let right = self.side()?;
        if left.len() != right.len() {
            return Err("sides of different lengths".into());
        }
        all.push(Condition { left, operator, right });
        Ok(())
    }

    fn side(&mut self) -> Result<Vec<Expr>, String> {
        match self.peek() {
            Some(Token::Sign(sign)) if sign == "(" => self.in_brackets(Parser::expr),
            _ => Ok(vec![self.expr()?]),
        }
    }

    fn expr(&mut self) -> Result<Expr, String> {
        let mut left = self.term()?;
        loop {
            if self.sign("+") {
                left = Expr::Add(Box::new(left), Box::new(self.term()?));
            } else if self.sign("-") {
                left = Expr::Subtract(Box::new(left), Box::new(self.term()?));
            } else if self.words("is not null") {
                left = Expr::IsNotNull(Box::new(left));
            } else {
                // An alias names the column and changes nothing else.
                if self.words("as") {
                    self.name()?;
                }
                return Ok(left);
            }
        }
    }

    fn term(&mut self) -> Result<Expr, String> {
        let expr = match self.next() {
            Some(Token::Parameter(n)) => Expr::Parameter(n),
            Some(Token::Number(n)) => Expr::Int(n),
            Some(Token::Text(text)) => Expr::Text(text),
            Some(Token::Word(name)) if name == "hash_record_extended" => {
                self.expect("(")?;
                if !self.words("row") {
                    return Err("ROW expected".into());
                }
                self.in_brackets(Parser::expr)?;
                self.expect(",")?;
                self.expr()?;
                self.expect(")")?;
                Expr::RowHash
            }
            Some(Token::Word(name)) if name == "pg_column_size" => {
                self.expect("(")?;
                let value = self.expr()?;
                self.expect(")")?;
                Expr::Size(Box::new(value))
            }
            Some(Token::Word(name) | Token::Name(name)) => {
                if self.sign(".") {
                    let column = self.name()?;
                    match name.as_str() {
                        "excluded" => Expr::Excluded(column),
                        "given" => Expr::Given(column),
                        _ => Expr::Column(column),
                    }
                } else {
                    Expr::Column(name)
                }
            }
            other => return Err(format!("a value expected at {other:?}")),
        };
        if self.sign("::") {
            self.name()?;
            _ = self.sign("[]");
        }
        Ok(expr)
    }
}

fn type_oid(name: &str) -> Result<u32, String> {
    Ok(match name {
        "bigint" => 20,
        "text" => 25,
        "bytea" => 17,
        other => return Err(format!("type {other}")),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn statements_of_a_replica_are_understood() {
        for sql in [
            r#"INSERT INTO public."t" ("id", "v") SELECT * FROM unnest($1, $2) ON CONFLICT ("id") DO UPDATE SET "v" = EXCLUDED."v""#,
            r#"INSERT INTO "t" AS "x" ("id", "v") VALUES ($1, $2) ON CONFLICT ("id") DO UPDATE SET "v" = "x"."v" + "excluded"."v" RETURNING "x"."v", "id", "v", "xmax""#,
            r#"UPDATE public."t" AS t SET "v" = given.v0 FROM unnest($1, $2) AS given(k0, v0) WHERE t."id" = given.k0"#,
            r#"UPDATE public."t" SET "v" = $2 WHERE ("id") = ($1)"#,
            r#"DELETE FROM public."t" AS t USING unnest($1) AS given(k0) WHERE t."id" = given.k0"#,
            r#"DELETE FROM public."t" WHERE ("id") = ($1)"#,
            r#"DELETE FROM public."t" WHERE ("id") >= ($1) AND ("id") < ($2)"#,
            r#"SELECT "id", "v" FROM public."t" WHERE ("id") >= ($1) ORDER BY "id" LIMIT $2"#,
            r#"SELECT count(*), coalesce(sum(hash_record_extended(ROW("id", "v"::text), 0)), 0)::text FROM public."t""#,
            r#"DECLARE evenkeel_chunk NO SCROLL CURSOR FOR SELECT "id", "v", hash_record_extended(ROW("id", "v"::text), 0) FROM public."t" WHERE ("id") >= ($1) ORDER BY "id""#,
            r#"DECLARE evenkeel_chunk NO SCROLL CURSOR FOR SELECT "id", pg_column_size("id"), pg_column_size("v") FROM public."t" ORDER BY "id""#,
            "FETCH FORWARD 64 FROM evenkeel_chunk",
            "CLOSE evenkeel_chunk",
            r#"SELECT "v" FROM "t" WHERE "id" = $1 FOR UPDATE"#,
            r#"SELECT "id" FROM "t" WHERE ("id" >= $1 AND "id" < $2) AND "t"."id" >= $3::bigint LIMIT $4::bigint"#,
            r#"SELECT "id", "v", "t"."id" FROM "t" WHERE ("id" >= $1) AND "t"."id" > $2::bigint ORDER BY "t"."id""#,
            "DELETE FROM evenkeel.applied AS a USING unnest($1::bigint[], $2::bigint[]) AS given(term, serial) WHERE a.term = given.term AND a.serial = given.serial",
            "SELECT batch, index, term, state IS NOT NULL, answers, reached, transactions IS NOT NULL FROM evenkeel.position ORDER BY batch",
            r#"CREATE TABLE IF NOT EXISTS "t" ("id" bigint NOT NULL, "v" bigint, PRIMARY KEY ("id"))"#,
        ] {
            parse(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
        assert!(parse("VACUUM").is_err() && parse("SELECT nonsense(1) FROM t").is_err());
        let all = parse_all("SET enable_sort = off; SET lock_timeout = '10s'").unwrap();
        assert_eq!(all, [Statement::Nothing, Statement::LockTimeout(10_000)]);
    }
}
