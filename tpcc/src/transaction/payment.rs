//! Payment, clause 2.5.

use super::customer::{Lookup, Selection};
use super::{Ending, Failure, InputSource, Stamp, change, fetch};
use crate::fixed::{Fixed, Money};
use crate::ledger::Claim;
use crate::statement::{Connection, Parameter, Statement};

/// Cases in a hundred in which the customer belongs to another warehouse.
const REMOTE_PERCENT: i32 = 15;
/// Length of C_DATA.
const CUSTOMER_DATA_CHARACTERS: usize = 500;
/// The credit of customers whose payments are recorded in C_DATA.
const BAD_CREDIT: &str = "BC";

/// What the user typed.
#[derive(Debug)]
pub(crate) struct Input {
    warehouse: i32,
    district: i32,
    customer_warehouse: i32,
    customer_district: i32,
    customer: Selection,
    amount: Money,
}

impl Input {
    pub(super) fn draw(source: &mut InputSource) -> Self {
        let district = source.district();
        let is_remote = source.scale.warehouses > 1 && source.random.percent(REMOTE_PERCENT);
        let (customer_warehouse, customer_district) = match is_remote {
            true => (source.remote_warehouse(), source.district()),
            false => (source.home, district),
        };
        Self {
            warehouse: source.home,
            district,
            customer_warehouse,
            customer_district,
            customer: Selection::draw(source),
            amount: Fixed(source.random.units(100, 500_000)),
        }
    }
}

/// The prepared statements.
#[derive(Debug)]
pub(super) struct Statements {
    pay_warehouse: Statement,
    warehouse: Statement,
    pay_district: Statement,
    district: Statement,
    lookup: Lookup,
    customer: Statement,
    pay_customer: Statement,
    customer_data: Statement,
    pay_bad_credit: Statement,
    insert_history: Statement,
}

impl Statements {
    pub(super) async fn prepare(client: &Connection) -> Result<Self, tokio_postgres::Error> {
        let prepare = |text: &'static str| client.prepare(text);
        Ok(Self {
            pay_warehouse: prepare("UPDATE warehouse SET w_ytd = w_ytd + $2 WHERE w_id = $1").await?,
            warehouse: prepare(
                "SELECT w_name, w_street_1, w_street_2, w_city, w_state, w_zip FROM warehouse \
                 WHERE w_id = $1",
            )
            .await?,
            pay_district: prepare("UPDATE district SET d_ytd = d_ytd + $3 WHERE d_w_id = $1 AND d_id = $2").await?,
            district: prepare(
                "SELECT d_name, d_street_1, d_street_2, d_city, d_state, d_zip FROM district \
                 WHERE d_w_id = $1 AND d_id = $2",
            )
            .await?,
            lookup: Lookup::prepare(client).await?,
            customer: prepare(
                "SELECT c_credit, c_first, c_middle, c_last, c_street_1, c_street_2, c_city, c_state, \
                 c_zip, c_phone, c_since, c_credit_lim, c_discount, c_balance FROM customer \
                 WHERE c_w_id = $1 AND c_d_id = $2 AND c_id = $3 FOR UPDATE",
            )
            .await?,
            pay_customer: prepare(
                "UPDATE customer SET c_balance = c_balance - $4, c_ytd_payment = c_ytd_payment + $4, \
                 c_payment_cnt = c_payment_cnt + 1 WHERE c_w_id = $1 AND c_d_id = $2 AND c_id = $3",
            )
            .await?,
            customer_data: prepare("SELECT c_data FROM customer WHERE c_w_id = $1 AND c_d_id = $2 AND c_id = $3")
                .await?,
            pay_bad_credit: prepare(
                "UPDATE customer SET c_balance = c_balance - $4, c_ytd_payment = c_ytd_payment + $4, \
                 c_payment_cnt = c_payment_cnt + 1, c_data = $5 \
                 WHERE c_w_id = $1 AND c_d_id = $2 AND c_id = $3",
            )
            .await?,
            insert_history: prepare(
                "INSERT INTO history (h_c_id, h_c_d_id, h_c_w_id, h_d_id, h_w_id, h_date, h_amount, \
                 h_data) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            )
            .await?,
        })
    }

    pub(super) async fn perform(&self, client: &Connection, input: &Input, stamp: &Stamp) -> Result<Ending, Failure> {
        let Input {
            warehouse,
            district,
            customer_warehouse,
            customer_district,
            amount,
            ..
        } = input;
        change(client, &self.pay_warehouse, &[warehouse, amount], "warehouse").await?;
        let row = fetch(client, &self.warehouse, &[warehouse], "warehouse").await?;
        let warehouse_name: &str = row.try_get(0)?;
        change(client, &self.pay_district, &[warehouse, district, amount], "district").await?;
        let district_row = fetch(client, &self.district, &[warehouse, district], "district").await?;
        let district_name: &str = district_row.try_get(0)?;

        let customer = self
            .lookup
            .find(client, *customer_warehouse, *customer_district, &input.customer)
            .await?;
        self.pay(client, input, customer).await?;

        let data = match &stamp.marker {
            Some(marker) => marker.clone(),
            None => format!("{warehouse_name}    {district_name}"),
        };
        client
            .execute(
                &self.insert_history,
                &[
                    &customer,
                    customer_district,
                    customer_warehouse,
                    district,
                    warehouse,
                    &stamp.now,
                    amount,
                    &data,
                ],
            )
            .await?;
        Ok(Ending::Commit(stamp.marker.clone().map(|marker| Claim::Payment {
            warehouse: *warehouse,
            district: *district,
            amount_cents: amount.0,
            marker,
        })))
    }

    /// Changes the customer's account; one with bad credit also gets the payment written into its data.
    async fn pay(&self, client: &Connection, input: &Input, customer: i32) -> Result<(), Failure> {
        let Input {
            warehouse,
            district,
            customer_warehouse,
            customer_district,
            amount,
            ..
        } = input;
        let key: [&dyn Parameter; 3] = [customer_warehouse, customer_district, &customer];
        let row = fetch(client, &self.customer, &key, "customer").await?;
        let credit: &str = row.try_get(0)?;
        let mut parameters = key.to_vec();
        parameters.push(amount);
        if credit != BAD_CREDIT {
            return change(client, &self.pay_customer, &parameters, "customer").await;
        }
        let row = fetch(client, &self.customer_data, &key, "customer").await?;
        let old_data: &str = row.try_get(0)?;
        let data: String =
            format!("{customer} {customer_district} {customer_warehouse} {district} {warehouse} {amount} {old_data}")
                .chars()
                .take(CUSTOMER_DATA_CHARACTERS)
                .collect();
        parameters.push(&data);
        change(client, &self.pay_bad_credit, &parameters, "customer").await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Constants, Random};
    use crate::scale::Scale;

    #[test]
    fn inputs_follow_clause_2_5_1() {
        let mut random = Random::new(1, 0);
        let constants = Constants::for_run(&mut random);
        let scale = Scale::standard(4);
        let mut source = InputSource {
            random,
            constants,
            scale,
            home: 4,
            home_district: 1,
        };
        let inputs: Vec<Input> = (0..10_000).map(|_| Input::draw(&mut source)).collect();
        let remote = inputs.iter().filter(|input| input.customer_warehouse != 4).count();
        assert!((1_350..1_650).contains(&remote), "{remote}");
        let by_name = inputs
            .iter()
            .filter(|input| matches!(input.customer, Selection::LastName(_)))
            .count();
        assert!((5_800..6_200).contains(&by_name), "{by_name}");
        assert!(inputs.iter().all(|input| (1..=4).contains(&input.customer_warehouse)));
    }
}
