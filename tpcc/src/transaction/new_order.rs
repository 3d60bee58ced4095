//! New-Order, clause 2.4.

use super::{Ending, Failure, InputSource, Stamp, change, fetch};
use crate::clock::micros;
use crate::fixed::{Fixed, Money, Rate};
use crate::ledger::Claim;
use crate::scale::DISTRICTS;
use crate::statement::{Connection, Statement};

/// Cases in a hundred in which the last item does not exist.
const ROLLBACK_PERCENT: i32 = 1;
/// Cases in a hundred in which an item is supplied by another warehouse.
const REMOTE_PERCENT: i32 = 1;
/// Stock is refilled by this much when it would fall below ten.
const REFILL: i32 = 91;
const LOWEST_STOCK: i32 = 10;

/// One line of the order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    supply_warehouse: i32,
    item: i32,
    quantity: i32,
}

/// What the user typed.
#[derive(Debug)]
pub(crate) struct Input {
    warehouse: i32,
    district: i32,
    customer: i32,
    lines: Vec<Line>,
}

impl Input {
    pub(super) fn draw(source: &mut InputSource) -> Self {
        let district = source.district();
        let customer = source.customer();
        let count = source.random.uniform(5, 15);
        let mut lines: Vec<Line> = (0..count).map(|_| draw_line(source)).collect();
        // As usual kits do it: stock is locked in one order by everyone, so New-Orders do not deadlock.
        lines.sort();
        if source.random.percent(ROLLBACK_PERCENT)
            && let Some(last) = lines.last_mut()
        {
            last.item = source.scale.items + 1;
        }
        Self {
            warehouse: source.home,
            district,
            customer,
            lines,
        }
    }

    fn is_all_local(&self) -> bool {
        self.lines.iter().all(|line| line.supply_warehouse == self.warehouse)
    }
}

fn draw_line(source: &mut InputSource) -> Line {
    let item = source.random.item(&source.constants, source.scale.items);
    let supply_warehouse = if source.random.percent(REMOTE_PERCENT) {
        source.remote_warehouse()
    } else {
        source.home
    };
    Line {
        supply_warehouse,
        item,
        quantity: source.random.uniform(1, 10),
    }
}

/// The prepared statements.
#[derive(Debug)]
pub(super) struct Statements {
    warehouse: Statement,
    district: Statement,
    advance_district: Statement,
    customer: Statement,
    insert_order: Statement,
    insert_new_order: Statement,
    item: Statement,
    /// One for each district, which has its own column of texts.
    stock: Vec<Statement>,
    update_stock: Statement,
    insert_line: Statement,
}

impl Statements {
    pub(super) async fn prepare(client: &Connection) -> Result<Self, tokio_postgres::Error> {
        let mut stock = Vec::new();
        for district in 1..=DISTRICTS {
            let text = format!(
                "SELECT s_quantity, s_data, s_dist_{district:02} FROM stock \
                 WHERE s_w_id = $1 AND s_i_id = $2 FOR UPDATE"
            );
            stock.push(client.prepare(&text).await?);
        }
        let prepare = |text: &'static str| client.prepare(text);
        Ok(Self {
            warehouse: prepare("SELECT w_tax FROM warehouse WHERE w_id = $1").await?,
            district: prepare("SELECT d_next_o_id, d_tax FROM district WHERE d_w_id = $1 AND d_id = $2 FOR UPDATE")
                .await?,
            advance_district: prepare("UPDATE district SET d_next_o_id = $3 WHERE d_w_id = $1 AND d_id = $2").await?,
            customer: prepare(
                "SELECT c_discount, c_last, c_credit FROM customer \
                 WHERE c_w_id = $1 AND c_d_id = $2 AND c_id = $3",
            )
            .await?,
            insert_order: prepare(
                "INSERT INTO orders (o_w_id, o_d_id, o_id, o_c_id, o_entry_d, o_ol_cnt, o_all_local) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7)",
            )
            .await?,
            insert_new_order: prepare("INSERT INTO new_order (no_w_id, no_d_id, no_o_id) VALUES ($1, $2, $3)").await?,
            item: prepare("SELECT i_price, i_name, i_data FROM item WHERE i_id = $1").await?,
            stock,
            update_stock: prepare(
                "UPDATE stock SET s_quantity = $3, s_ytd = s_ytd + $4, s_order_cnt = s_order_cnt + 1, \
                 s_remote_cnt = s_remote_cnt + $5 WHERE s_w_id = $1 AND s_i_id = $2",
            )
            .await?,
            insert_line: prepare(
                "INSERT INTO order_line (ol_w_id, ol_d_id, ol_o_id, ol_number, ol_i_id, \
                 ol_supply_w_id, ol_quantity, ol_amount, ol_dist_info) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            )
            .await?,
        })
    }

    pub(super) async fn perform(&self, client: &Connection, input: &Input, stamp: &Stamp) -> Result<Ending, Failure> {
        let Input {
            warehouse,
            district,
            customer,
            lines,
        } = input;
        let row = fetch(client, &self.warehouse, &[warehouse], "warehouse").await?;
        let _warehouse_tax: Rate = row.try_get(0)?;
        let row = fetch(client, &self.district, &[warehouse, district], "district").await?;
        let order: i32 = row.try_get(0)?;
        let _district_tax: Rate = row.try_get(1)?;
        let next_order = order.saturating_add(1);
        change(
            client,
            &self.advance_district,
            &[warehouse, district, &next_order],
            "district",
        )
        .await?;
        let row = fetch(client, &self.customer, &[warehouse, district, customer], "customer").await?;
        let _discount: Rate = row.try_get(0)?;

        let line_count = i32::try_from(lines.len()).unwrap_or(i32::MAX);
        let all_local = i32::from(input.is_all_local());
        client
            .execute(
                &self.insert_order,
                &[
                    warehouse,
                    district,
                    &order,
                    customer,
                    &stamp.now,
                    &line_count,
                    &all_local,
                ],
            )
            .await?;
        client
            .execute(&self.insert_new_order, &[warehouse, district, &order])
            .await?;

        let claim = Some(Claim::NewOrder {
            warehouse: *warehouse,
            district: *district,
            order,
            customer: *customer,
            entry_micros: micros(stamp.now),
        });
        for (number, line) in (1..).zip(lines) {
            if !self.add_line(client, input, order, number, line).await? {
                return Ok(Ending::Rollback(claim));
            }
        }
        Ok(Ending::Commit(claim))
    }

    /// Takes one item from its stock; false if there is no such item.
    async fn add_line(
        &self,
        client: &Connection,
        input: &Input,
        order: i32,
        number: i32,
        line: &Line,
    ) -> Result<bool, Failure> {
        let Input {
            warehouse, district, ..
        } = input;
        let Line {
            supply_warehouse,
            item,
            quantity,
        } = line;
        let Some(row) = client.query_opt(&self.item, &[item]).await? else {
            return Ok(false);
        };
        let price: Money = row.try_get(0)?;

        let select_stock = usize::try_from(district - 1)
            .ok()
            .and_then(|index| self.stock.get(index))
            .ok_or(Failure::Missing("district number"))?;
        let row = fetch(client, select_stock, &[supply_warehouse, item], "stock").await?;
        let left = stock_left(row.try_get(0)?, *quantity);
        let district_text: &str = row.try_get(2)?;
        let remote = i32::from(supply_warehouse != warehouse);
        change(
            client,
            &self.update_stock,
            &[supply_warehouse, item, &left, quantity, &remote],
            "stock",
        )
        .await?;

        let amount: Money = Fixed(price.0.saturating_mul(i64::from(*quantity)));
        client
            .execute(
                &self.insert_line,
                &[
                    warehouse,
                    district,
                    &order,
                    &number,
                    item,
                    supply_warehouse,
                    quantity,
                    &amount,
                    &district_text,
                ],
            )
            .await?;
        Ok(true)
    }
}

/// What is left in stock, clause 2.4.2.2.
fn stock_left(before: i32, quantity: i32) -> i32 {
    let left = before.saturating_sub(quantity);
    if left >= LOWEST_STOCK {
        left
    } else {
        left.saturating_add(REFILL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Constants, Random};
    use crate::scale::Scale;

    #[test]
    fn stock_is_refilled_below_ten() {
        assert_eq!(stock_left(20, 10), 10);
        assert_eq!(stock_left(19, 10), 100);
    }

    #[test]
    fn inputs_follow_clause_2_4_1() {
        let mut random = Random::new(1, 0);
        let constants = Constants::for_run(&mut random);
        let scale = Scale::standard(3);
        let mut source = InputSource {
            random,
            constants,
            scale,
            home: 2,
            home_district: 1,
        };
        let inputs: Vec<Input> = (0..20_000).map(|_| Input::draw(&mut source)).collect();
        let lines: Vec<&Line> = inputs.iter().flat_map(|input| &input.lines).collect();
        let unused = lines.iter().filter(|line| line.item > scale.items).count();
        assert!((120..280).contains(&unused), "{unused}");
        let remote = lines.iter().filter(|line| line.supply_warehouse != 2).count();
        assert!((1_700..2_300).contains(&remote), "{remote} of {}", lines.len());
        assert!((190_000..210_000).contains(&lines.len()));
        assert!(inputs.iter().all(|input| (5..=15).contains(&input.lines.len())));
    }
}
