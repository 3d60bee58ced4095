//! The nine tables of clause 1.3.

/// One table.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    /// Column names and types, in the order in which the loader writes them.
    pub(crate) columns: &'static [(&'static str, &'static str)],
    /// Columns of the primary key; the history table has none.
    pub(crate) primary_key: &'static str,
}

impl Table {
    /// The statement that creates it.
    pub(crate) fn create_statement(&self) -> String {
        let mut parts: Vec<String> = self
            .columns
            .iter()
            .map(|(name, kind)| format!("{name} {kind}"))
            .collect();
        if !self.primary_key.is_empty() {
            parts.push(format!("PRIMARY KEY ({})", self.primary_key));
        }
        format!("CREATE TABLE {} ({})", self.name, parts.join(", "))
    }

    /// The column names, as COPY and INSERT list them.
    pub(crate) fn column_list(&self) -> String {
        let names: Vec<&str> = self.columns.iter().map(|(name, _)| *name).collect();
        names.join(", ")
    }
}

pub(crate) static WAREHOUSE: Table = Table {
    name: "warehouse",
    columns: &[
        ("w_id", "int NOT NULL"),
        ("w_name", "varchar(10) NOT NULL"),
        ("w_street_1", "varchar(20) NOT NULL"),
        ("w_street_2", "varchar(20) NOT NULL"),
        ("w_city", "varchar(20) NOT NULL"),
        ("w_state", "char(2) NOT NULL"),
        ("w_zip", "char(9) NOT NULL"),
        ("w_tax", "numeric(4,4) NOT NULL"),
        ("w_ytd", "numeric(12,2) NOT NULL"),
    ],
    primary_key: "w_id",
};

pub(crate) static DISTRICT: Table = Table {
    name: "district",
    columns: &[
        ("d_w_id", "int NOT NULL"),
        ("d_id", "int NOT NULL"),
        ("d_name", "varchar(10) NOT NULL"),
        ("d_street_1", "varchar(20) NOT NULL"),
        ("d_street_2", "varchar(20) NOT NULL"),
        ("d_city", "varchar(20) NOT NULL"),
        ("d_state", "char(2) NOT NULL"),
        ("d_zip", "char(9) NOT NULL"),
        ("d_tax", "numeric(4,4) NOT NULL"),
        ("d_ytd", "numeric(12,2) NOT NULL"),
        ("d_next_o_id", "int NOT NULL"),
    ],
    primary_key: "d_w_id, d_id",
};

pub(crate) static CUSTOMER: Table = Table {
    name: "customer",
    columns: &[
        ("c_w_id", "int NOT NULL"),
        ("c_d_id", "int NOT NULL"),
        ("c_id", "int NOT NULL"),
        ("c_first", "varchar(16) NOT NULL"),
        ("c_middle", "char(2) NOT NULL"),
        ("c_last", "varchar(16) NOT NULL"),
        ("c_street_1", "varchar(20) NOT NULL"),
        ("c_street_2", "varchar(20) NOT NULL"),
        ("c_city", "varchar(20) NOT NULL"),
        ("c_state", "char(2) NOT NULL"),
        ("c_zip", "char(9) NOT NULL"),
        ("c_phone", "char(16) NOT NULL"),
        ("c_since", "timestamp NOT NULL"),
        ("c_credit", "char(2) NOT NULL"),
        ("c_credit_lim", "numeric(12,2) NOT NULL"),
        ("c_discount", "numeric(4,4) NOT NULL"),
        ("c_balance", "numeric(12,2) NOT NULL"),
        ("c_ytd_payment", "numeric(12,2) NOT NULL"),
        ("c_payment_cnt", "int NOT NULL"),
        ("c_delivery_cnt", "int NOT NULL"),
        ("c_data", "varchar(500) NOT NULL"),
    ],
    primary_key: "c_w_id, c_d_id, c_id",
};

pub(crate) static HISTORY: Table = Table {
    name: "history",
    columns: &[
        ("h_c_id", "int NOT NULL"),
        ("h_c_d_id", "int NOT NULL"),
        ("h_c_w_id", "int NOT NULL"),
        ("h_d_id", "int NOT NULL"),
        ("h_w_id", "int NOT NULL"),
        ("h_date", "timestamp NOT NULL"),
        ("h_amount", "numeric(6,2) NOT NULL"),
        ("h_data", "varchar(24) NOT NULL"),
    ],
    primary_key: "",
};

pub(crate) static NEW_ORDER: Table = Table {
    name: "new_order",
    columns: &[
        ("no_w_id", "int NOT NULL"),
        ("no_d_id", "int NOT NULL"),
        ("no_o_id", "int NOT NULL"),
    ],
    primary_key: "no_w_id, no_d_id, no_o_id",
};

pub(crate) static ORDERS: Table = Table {
    name: "orders",
    columns: &[
        ("o_w_id", "int NOT NULL"),
        ("o_d_id", "int NOT NULL"),
        ("o_id", "int NOT NULL"),
        ("o_c_id", "int NOT NULL"),
        ("o_entry_d", "timestamp NOT NULL"),
        ("o_carrier_id", "int"),
        ("o_ol_cnt", "int NOT NULL"),
        ("o_all_local", "int NOT NULL"),
    ],
    primary_key: "o_w_id, o_d_id, o_id",
};

pub(crate) static ORDER_LINE: Table = Table {
    name: "order_line",
    columns: &[
        ("ol_w_id", "int NOT NULL"),
        ("ol_d_id", "int NOT NULL"),
        ("ol_o_id", "int NOT NULL"),
        ("ol_number", "int NOT NULL"),
        ("ol_i_id", "int NOT NULL"),
        ("ol_supply_w_id", "int NOT NULL"),
        ("ol_delivery_d", "timestamp"),
        ("ol_quantity", "int NOT NULL"),
        ("ol_amount", "numeric(6,2) NOT NULL"),
        ("ol_dist_info", "char(24) NOT NULL"),
    ],
    primary_key: "ol_w_id, ol_d_id, ol_o_id, ol_number",
};

pub(crate) static ITEM: Table = Table {
    name: "item",
    columns: &[
        ("i_id", "int NOT NULL"),
        ("i_im_id", "int NOT NULL"),
        ("i_name", "varchar(24) NOT NULL"),
        ("i_price", "numeric(5,2) NOT NULL"),
        ("i_data", "varchar(50) NOT NULL"),
    ],
    primary_key: "i_id",
};

pub(crate) static STOCK: Table = Table {
    name: "stock",
    columns: &[
        ("s_w_id", "int NOT NULL"),
        ("s_i_id", "int NOT NULL"),
        ("s_quantity", "int NOT NULL"),
        ("s_dist_01", "char(24) NOT NULL"),
        ("s_dist_02", "char(24) NOT NULL"),
        ("s_dist_03", "char(24) NOT NULL"),
        ("s_dist_04", "char(24) NOT NULL"),
        ("s_dist_05", "char(24) NOT NULL"),
        ("s_dist_06", "char(24) NOT NULL"),
        ("s_dist_07", "char(24) NOT NULL"),
        ("s_dist_08", "char(24) NOT NULL"),
        ("s_dist_09", "char(24) NOT NULL"),
        ("s_dist_10", "char(24) NOT NULL"),
        ("s_ytd", "int NOT NULL"),
        ("s_order_cnt", "int NOT NULL"),
        ("s_remote_cnt", "int NOT NULL"),
        ("s_data", "varchar(50) NOT NULL"),
    ],
    primary_key: "s_w_id, s_i_id",
};

/// All tables; each comes after those that its foreign keys refer to.
pub(crate) static TABLES: [&Table; 9] = [
    &WAREHOUSE,
    &DISTRICT,
    &CUSTOMER,
    &HISTORY,
    &ORDERS,
    &NEW_ORDER,
    &ITEM,
    &STOCK,
    &ORDER_LINE,
];

/// Indexes beside the primary keys, made after the load.
pub(crate) static INDEXES: [&str; 2] = [
    "CREATE INDEX customer_by_name ON customer (c_w_id, c_d_id, c_last, c_first)",
    "CREATE INDEX orders_by_customer ON orders (o_w_id, o_d_id, o_c_id, o_id)",
];

/// The foreign keys of clause 1.3, made after the load where asked for.
pub(crate) static FOREIGN_KEYS: [&str; 9] = [
    "ALTER TABLE district ADD FOREIGN KEY (d_w_id) REFERENCES warehouse (w_id)",
    "ALTER TABLE customer ADD FOREIGN KEY (c_w_id, c_d_id) REFERENCES district (d_w_id, d_id)",
    "ALTER TABLE history ADD FOREIGN KEY (h_c_w_id, h_c_d_id, h_c_id) \
     REFERENCES customer (c_w_id, c_d_id, c_id)",
    "ALTER TABLE history ADD FOREIGN KEY (h_w_id, h_d_id) REFERENCES district (d_w_id, d_id)",
    "ALTER TABLE orders ADD FOREIGN KEY (o_w_id, o_d_id, o_c_id) \
     REFERENCES customer (c_w_id, c_d_id, c_id)",
    "ALTER TABLE new_order ADD FOREIGN KEY (no_w_id, no_d_id, no_o_id) \
     REFERENCES orders (o_w_id, o_d_id, o_id)",
    "ALTER TABLE order_line ADD FOREIGN KEY (ol_w_id, ol_d_id, ol_o_id) \
     REFERENCES orders (o_w_id, o_d_id, o_id)",
    "ALTER TABLE order_line ADD FOREIGN KEY (ol_supply_w_id, ol_i_id) \
     REFERENCES stock (s_w_id, s_i_id)",
    "ALTER TABLE stock ADD FOREIGN KEY (s_i_id) REFERENCES item (i_id)",
];

/// The statements that remove the tables of an earlier load.
pub(crate) fn drop_statements() -> Vec<String> {
    TABLES
        .iter()
        .rev()
        .map(|table| format!("DROP TABLE IF EXISTS {}", table.name))
        .collect()
}
