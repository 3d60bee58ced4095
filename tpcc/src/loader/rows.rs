//! The content of each table, clause 4.3.3.1.

use std::time::SystemTime;

use indicatif::ProgressBar;
use tokio_postgres::Client;

use super::table_writer::{TableWriter, Transport, Value};
use crate::Error;
use crate::fixed::Fixed;
use crate::random::{Constants, LAST_NAMES, Random, last_name};
use crate::scale::{DISTRICTS, Scale};
use crate::schema::{CUSTOMER, DISTRICT, HISTORY, ITEM, NEW_ORDER, ORDER_LINE, ORDERS, STOCK, Table, WAREHOUSE};

/// What every customer has paid before the beginning, in hundredths.
const FIRST_PAYMENT: i64 = 1_000;
const CREDIT_LIMIT: i64 = 5_000_000;
/// Quantity of every order line that the load makes.
const LOADED_QUANTITY: i32 = 5;

/// What all rows of one load have in common.
#[derive(Debug, Clone)]
pub(super) struct Population {
    pub(super) scale: Scale,
    pub(super) transport: Transport,
    /// The time of every loaded row.
    pub(super) now: SystemTime,
    pub(super) progress: ProgressBar,
}

/// One order of the load: needed for its own row, for its lines and for its entry among the new orders.
struct LoadedOrder {
    district: i32,
    id: i32,
    customer: i32,
    lines: i32,
    is_delivered: bool,
}

impl Population {
    /// The item table, which has no warehouse.
    pub(super) async fn load_items(&self, client: &Client, random: &mut Random) -> Result<(), Error> {
        let mut writer = self.writer(client, &ITEM).await?;
        for item in 1..=self.scale.items {
            let image = random.uniform(1, 10_000);
            let name = random.text(14, 24);
            let price = random.units(100, 10_000);
            let row = [
                Value::Number(item),
                Value::Number(image),
                Value::Text(&name),
                Value::Money(Fixed(price)),
                Value::Text(&random.data()),
            ];
            writer.row(&row).await?;
        }
        writer.finish().await
    }

    /// All rows of one warehouse.
    pub(super) async fn load_warehouse(
        &self,
        client: &Client,
        warehouse: i32,
        random: &mut Random,
    ) -> Result<(), Error> {
        self.load_warehouse_row(client, warehouse, random).await?;
        self.load_districts(client, warehouse, random).await?;
        self.load_customers(client, warehouse, random).await?;
        self.load_history(client, warehouse, random).await?;
        let orders = self.draw_orders(random);
        self.load_orders(client, warehouse, &orders, random).await?;
        self.load_new_orders(client, warehouse, &orders).await?;
        self.load_stock(client, warehouse, random).await?;
        self.load_order_lines(client, warehouse, &orders, random).await
    }

    async fn writer<'a>(&'a self, client: &'a Client, table: &Table) -> Result<TableWriter<'a>, Error> {
        TableWriter::begin(client, self.transport, table, &self.progress).await
    }

    /// What the customers of one district have paid: D_YTD, $30,000.00 in the specification.
    fn district_payments(&self) -> i64 {
        i64::from(self.scale.customers) * FIRST_PAYMENT
    }

    async fn load_warehouse_row(&self, client: &Client, warehouse: i32, random: &mut Random) -> Result<(), Error> {
        let mut writer = self.writer(client, &WAREHOUSE).await?;
        let name = random.text(6, 10);
        let address = Address::draw(random);
        let mut row = vec![Value::Number(warehouse), Value::Text(&name)];
        row.extend(address.values());
        row.push(Value::Rate(Fixed(random.units(0, 2_000))));
        row.push(Value::Money(Fixed(self.district_payments() * i64::from(DISTRICTS))));
        writer.row(&row).await?;
        writer.finish().await
    }

    async fn load_districts(&self, client: &Client, warehouse: i32, random: &mut Random) -> Result<(), Error> {
        let mut writer = self.writer(client, &DISTRICT).await?;
        for district in 1..=DISTRICTS {
            let name = random.text(6, 10);
            let address = Address::draw(random);
            let mut row = vec![Value::Number(warehouse), Value::Number(district), Value::Text(&name)];
            row.extend(address.values());
            row.push(Value::Rate(Fixed(random.units(0, 2_000))));
            row.push(Value::Money(Fixed(self.district_payments())));
            row.push(Value::Number(self.scale.customers + 1));
            writer.row(&row).await?;
        }
        writer.finish().await
    }

    async fn load_customers(&self, client: &Client, warehouse: i32, random: &mut Random) -> Result<(), Error> {
        let constants = Constants::for_load();
        let mut writer = self.writer(client, &CUSTOMER).await?;
        for (district, customer) in self.customers() {
            let last = last_name(match customer {
                1..=LAST_NAMES => customer - 1,
                _ => random.last_name_number(&constants, LAST_NAMES),
            });
            let first = random.text(8, 16);
            let address = Address::draw(random);
            let phone = random.digits(16);
            let data = random.text(300, 500);
            let mut row = vec![
                Value::Number(warehouse),
                Value::Number(district),
                Value::Number(customer),
                Value::Text(&first),
                Value::Text("OE"),
                Value::Text(&last),
            ];
            row.extend(address.values());
            row.extend([
                Value::Text(&phone),
                Value::Time(self.now),
                Value::Text(if random.percent(10) { "BC" } else { "GC" }),
                Value::Money(Fixed(CREDIT_LIMIT)),
                Value::Rate(Fixed(random.units(0, 5_000))),
                Value::Money(Fixed(-FIRST_PAYMENT)),
                Value::Money(Fixed(FIRST_PAYMENT)),
                Value::Number(1),
                Value::Number(0),
                Value::Text(&data),
            ]);
            writer.row(&row).await?;
        }
        writer.finish().await
    }

    async fn load_history(&self, client: &Client, warehouse: i32, random: &mut Random) -> Result<(), Error> {
        let mut writer = self.writer(client, &HISTORY).await?;
        for (district, customer) in self.customers() {
            let data = random.text(12, 24);
            let row = [
                Value::Number(customer),
                Value::Number(district),
                Value::Number(warehouse),
                Value::Number(district),
                Value::Number(warehouse),
                Value::Time(self.now),
                Value::Money(Fixed(FIRST_PAYMENT)),
                Value::Text(&data),
            ];
            writer.row(&row).await?;
        }
        writer.finish().await
    }

    fn draw_orders(&self, random: &mut Random) -> Vec<LoadedOrder> {
        let mut orders = Vec::new();
        for district in 1..=DISTRICTS {
            let customers = random.permutation(self.scale.customers);
            for (id, customer) in (1..).zip(customers) {
                let lines = random.uniform(5, 15);
                let is_delivered = id <= self.scale.delivered_orders();
                orders.push(LoadedOrder {
                    district,
                    id,
                    customer,
                    lines,
                    is_delivered,
                });
            }
        }
        orders
    }

    async fn load_orders(
        &self,
        client: &Client,
        warehouse: i32,
        orders: &[LoadedOrder],
        random: &mut Random,
    ) -> Result<(), Error> {
        let mut writer = self.writer(client, &ORDERS).await?;
        for order in orders {
            let carrier = match order.is_delivered {
                true => Value::Number(random.uniform(1, 10)),
                false => Value::Null,
            };
            let row = [
                Value::Number(warehouse),
                Value::Number(order.district),
                Value::Number(order.id),
                Value::Number(order.customer),
                Value::Time(self.now),
                carrier,
                Value::Number(order.lines),
                Value::Number(1),
            ];
            writer.row(&row).await?;
        }
        writer.finish().await
    }

    async fn load_new_orders(&self, client: &Client, warehouse: i32, orders: &[LoadedOrder]) -> Result<(), Error> {
        let mut writer = self.writer(client, &NEW_ORDER).await?;
        for order in orders.iter().filter(|order| !order.is_delivered) {
            let row = [warehouse, order.district, order.id].map(Value::Number);
            writer.row(&row).await?;
        }
        writer.finish().await
    }

    async fn load_order_lines(
        &self,
        client: &Client,
        warehouse: i32,
        orders: &[LoadedOrder],
        random: &mut Random,
    ) -> Result<(), Error> {
        let mut writer = self.writer(client, &ORDER_LINE).await?;
        for order in orders {
            let (delivered, lowest, highest) = match order.is_delivered {
                true => (Value::Time(self.now), 0, 0),
                false => (Value::Null, 1, 999_999),
            };
            for number in 1..=order.lines {
                let item = random.uniform(1, self.scale.items);
                let amount = random.units(lowest, highest);
                let district_text = random.text(24, 24);
                let row = [
                    Value::Number(warehouse),
                    Value::Number(order.district),
                    Value::Number(order.id),
                    Value::Number(number),
                    Value::Number(item),
                    Value::Number(warehouse),
                    delivered,
                    Value::Number(LOADED_QUANTITY),
                    Value::Money(Fixed(amount)),
                    Value::Text(&district_text),
                ];
                writer.row(&row).await?;
            }
        }
        writer.finish().await
    }

    async fn load_stock(&self, client: &Client, warehouse: i32, random: &mut Random) -> Result<(), Error> {
        let mut writer = self.writer(client, &STOCK).await?;
        for item in 1..=self.scale.items {
            let quantity = random.uniform(10, 100);
            let district_texts: Vec<String> = (0..DISTRICTS).map(|_| random.text(24, 24)).collect();
            let data = random.data();
            let mut row = vec![Value::Number(warehouse), Value::Number(item), Value::Number(quantity)];
            row.extend(district_texts.iter().map(|text| Value::Text(text)));
            row.extend([Value::Number(0), Value::Number(0), Value::Number(0), Value::Text(&data)]);
            writer.row(&row).await?;
        }
        writer.finish().await
    }

    /// District and number of every customer of a warehouse.
    fn customers(&self) -> impl Iterator<Item = (i32, i32)> + use<> {
        let customers = self.scale.customers;
        (1..=DISTRICTS).flat_map(move |district| (1..=customers).map(move |id| (district, id)))
    }
}

/// Two streets, city, state and zip, as warehouses, districts and customers have them.
struct Address([String; 5]);

impl Address {
    fn draw(random: &mut Random) -> Self {
        Self([
            random.text(10, 20),
            random.text(10, 20),
            random.text(10, 20),
            random.text(2, 2),
            random.zip(),
        ])
    }

    fn values(&self) -> impl Iterator<Item = Value<'_>> {
        self.0.iter().map(|text| Value::Text(text))
    }
}
