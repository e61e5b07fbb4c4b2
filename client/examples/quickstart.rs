//! A first look at the client: a table, rows, a read by key, a scan in key order, a transaction.
//!
//! `cargo run -p evenkeel-client --example quickstart -- http://127.0.0.1:7101`, with the URL of
//! any replica of the placement driver of a running cluster.

use evenkeel_client::{Client, ClientConfig, ClientError, TransactionOptions};

#[tokio::main]
async fn main() -> Result<(), ClientError> {
    let endpoints: Vec<String> = std::env::args().skip(1).collect();
    let client = Client::connect(ClientConfig::new(endpoints)).await?;

    client.execute("CREATE TABLE IF NOT EXISTS accounts (id bigint PRIMARY KEY, balance bigint NOT NULL)", &[]).await?;
    client.execute("INSERT INTO accounts VALUES (1, 100), (2, 50) ON CONFLICT DO NOTHING", &[]).await?;

    let answer = client.execute("SELECT balance FROM accounts WHERE id = $1", &[1.into()]).await?;
    println!("account 1 has {:?}, says shard {}", answer.rows.int(0, 0), answer.shard);

    loop {
        match transfer(&client, 1, 2, 10).await {
            Ok(()) => break,
            // Nothing of it has taken effect: a range moved, a leader was lost, or another
            // transaction was faster.
            Err(error) if error.is_retryable() => println!("once more: {error}"),
            Err(error) => return Err(error),
        }
    }

    let all = client.execute("SELECT id, balance FROM accounts ORDER BY id LIMIT 10", &[]).await?;
    for row in 0..all.rows.count as usize {
        println!("account {:?} has {:?}", all.rows.int(row, 0), all.rows.int(row, 1));
    }
    println!("{:?}", client.stats());
    Ok(())
}

async fn transfer(client: &Client, from: i64, to: i64, amount: i64) -> Result<(), ClientError> {
    let mut transaction = client.begin(TransactionOptions::default()).await?;
    let update = "UPDATE accounts SET balance = balance + $2 WHERE id = $1";
    transaction.execute(update, &[from.into(), (-amount).into()]).await?;
    transaction.execute(update, &[to.into(), amount.into()]).await?;
    transaction.commit().await
}
