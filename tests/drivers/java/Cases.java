// pgjdbc: cases.

import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.LinkedHashMap;
import java.util.Locale;
import java.util.Properties;
import java.util.Timer;
import java.util.TimerTask;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;

public class Cases {
    interface Case { String run() throws Exception; }

    static final Map<String, String> ENV = System.getenv();
    static final int ROWS = 1000;
    static final String[] ERRORS = {"INSERT INTO items (id) VALUES (1)", "SELECT 1/0", "SELECT nowhere", "SELEC"};

    static Connection fresh(String... options) throws SQLException {
        Properties p = new Properties();
        p.setProperty("user", ENV.get("PGUSER"));
        p.setProperty("password", ENV.get("PGPASSWORD"));
        p.setProperty("ApplicationName", ENV.get("PGAPPNAME"));
        p.setProperty("sslmode", "disable");
        for (int n = 0; n < options.length; n += 2) {
            p.setProperty(options[n], options[n + 1]);
        }
        String where = ENV.get("PGHOST") + ":" + ENV.get("PGPORT") + "/" + ENV.get("PGDATABASE");
        Connection c = DriverManager.getConnection("jdbc:postgresql://" + where, p);
        run(c, "DELETE FROM items");
        return c;
    }

    static void run(Connection c, String text) throws SQLException {
        try (Statement s = c.createStatement()) {
            s.execute(text);
        }
    }

    static String value(Connection c, String text, Object... values) throws SQLException {
        try (PreparedStatement s = c.prepareStatement(text)) {
            for (int n = 0; n < values.length; n++) {
                s.setObject(n + 1, values[n]);
            }
            try (ResultSet r = s.executeQuery()) {
                r.next();
                return r.getString(1);
            }
        }
    }

    interface Attempt { void make() throws Exception; }

    static String state(Attempt attempt) throws Exception {
        try {
            attempt.make();
            return "no error";
        } catch (SQLException e) {
            return e.getSQLState();
        }
    }

    static String count(Connection c) throws SQLException {
        return value(c, "SELECT count(*) FROM items");
    }

    static String owners(List<String> seen) {
        seen.replaceAll(o -> o.equals(ENV.get("CASES_TENANT")) ? "own" : o.equals(ENV.get("CASES_OTHER")) ? "other" : o);
        return String.join(" ", seen);
    }

    static String connect() throws Exception {
        try (Connection c = fresh()) {
            boolean name = value(c, "SHOW application_name").equals(ENV.get("PGAPPNAME"));
            return name + " " + c.getMetaData().getDatabaseProductVersion() + " " + c.isValid(1);
        }
    }

    static String encrypted() throws Exception {
        try (Connection c = fresh("sslmode", "verify-full", "sslrootcert", ENV.get("CASES_ROOT"))) {
            return value(c, "SELECT length(?)", "y".repeat(1_000_000));
        }
    }

    static String types() throws Exception {
        String text = "SELECT ?::int, ?::text, ?::text, ?::bool, ?::float8, ?::int[], ?::bytea";
        try (Connection c = fresh(); PreparedStatement s = c.prepareStatement(text)) {
            s.setInt(1, 1);
            s.setString(2, "é");
            s.setString(3, null);
            s.setBoolean(4, true);
            s.setDouble(5, 1.5);
            s.setArray(6, c.createArrayOf("int4", new Integer[] {1, 2}));
            s.setBytes(7, new byte[] {0, -1});
            String seen = "";
            // From the sixth time on results are binary and the statement has a name.
            for (int round = 0; round < 7; round++) {
                try (ResultSet r = s.executeQuery()) {
                    r.next();
                    seen = r.getInt(1) + r.getString(2) + r.getString(3) + r.getBoolean(4) + r.getDouble(5)
                        + r.getArray(6) + r.getBytes(7).length;
                }
            }
            return seen;
        }
    }

    static String prepared() throws Exception {
        int total = 0;
        try (Connection c = fresh(); PreparedStatement s = c.prepareStatement("SELECT ?::int + 1")) {
            for (int n = 0; n < 20; n++) {
                s.setInt(1, n);
                try (ResultSet r = s.executeQuery()) {
                    r.next();
                    total += r.getInt(1);
                }
            }
            run(c, "DEALLOCATE ALL");
            s.setInt(1, 1);
            return total + " " + state(() -> s.executeQuery().close());
        }
    }

    // More than the cache of the connection holds: what is thrown out is closed.
    static String evicted() throws Exception {
        try (Connection c = fresh("prepareThreshold", "1", "preparedStatementCacheQueries", "20")) {
            int total = 0;
            for (int n = 0; n < 300; n++) {
                total += Integer.parseInt(value(c, "SELECT ?::int + " + n % 60, 1));
            }
            return total + "";
        }
    }

    static String transaction() throws Exception {
        try (Connection c = fresh()) {
            c.setAutoCommit(false);
            run(c, "INSERT INTO items (id) VALUES (1)");
            Savepoint s = c.setSavepoint();
            run(c, "INSERT INTO items (id) VALUES (2)");
            c.rollback(s);
            c.commit();
            c.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
            c.setReadOnly(true);
            String level = value(c, "SHOW transaction_isolation");
            String refused = state(() -> run(c, "INSERT INTO items (id) VALUES (3)"));
            String next = state(() -> run(c, "SELECT 1"));
            c.rollback();
            return level + " " + refused + " " + next + " " + count(c);
        }
    }

    // A failed statement is taken back alone, by a savepoint that the driver sets.
    static String autosave() throws Exception {
        try (Connection c = fresh("autosave", "always")) {
            c.setAutoCommit(false);
            run(c, "INSERT INTO items (id) VALUES (1)");
            String failed = state(() -> run(c, "SELECT 1/0"));
            run(c, "INSERT INTO items (id) VALUES (2)");
            c.commit();
            return failed + " " + count(c);
        }
    }

    static String error() throws Exception {
        try (Connection c = fresh()) {
            run(c, "INSERT INTO items (id) VALUES (1)");
            List<String> states = new ArrayList<>();
            for (String text : ERRORS) {
                states.add(state(() -> run(c, text)));
                states.add(state(() -> value(c, text)));
            }
            return states + " " + count(c);
        }
    }

    static String batch() throws Exception {
        try (Connection c = fresh("reWriteBatchedInserts", "true")) {
            try (PreparedStatement s = c.prepareStatement("INSERT INTO items (id, body) VALUES (?, ?)")) {
                for (int n = 0; n < ROWS; n++) {
                    s.setInt(1, n);
                    s.setString(2, "b");
                    s.addBatch();
                }
                s.executeBatch();
            }
            try (Statement s = c.createStatement()) {
                s.addBatch("INSERT INTO items (id) VALUES (5000)");
                s.addBatch("SELECT 1/0");
                s.addBatch("INSERT INTO items (id) VALUES (5001)");
                return state(s::executeBatch) + " " + count(c);
            }
        }
    }

    // A batch is a pipeline: messages of all its statements before one Sync.
    static String pipeline() throws Exception {
        try (Connection c = fresh(); PreparedStatement s = c.prepareStatement("UPDATE items SET body = ? WHERE id = ?")) {
            run(c, "INSERT INTO items (id) SELECT generate_series(1, 1000)");
            for (int n = 1; n <= ROWS; n++) {
                s.setString(1, "body " + n);
                s.setInt(2, n);
                s.addBatch();
            }
            int total = 0;
            for (int changed : s.executeBatch()) {
                total += changed;
            }
            return total + " " + value(c, "SELECT count(DISTINCT body) FROM items");
        }
    }

    static String copy() throws Exception {
        try (Connection c = fresh()) {
            run(c, "DELETE FROM own_loads");
            CopyManager copy = c.unwrap(PGConnection.class).getCopyAPI();
            StringBuilder rows = new StringBuilder();
            for (int n = 0; n < ROWS; n++) {
                rows.append(n).append("\trow ").append(n).append('\n');
            }
            long in = copy.copyIn("COPY loads (id, body) FROM STDIN", new StringReader(rows.toString()));
            StringWriter out = new StringWriter();
            copy.copyOut("COPY (SELECT id, body FROM own_loads) TO STDOUT", out);
            String failed = state(() -> copy.copyIn("COPY loads (id, body) FROM STDIN", new StringReader("rubbish\n")));
            return in + " " + out.toString().length() + " " + failed + " " + value(c, "SELECT count(*) FROM own_loads");
        }
    }

    static String cursor() throws Exception {
        try (Connection c = fresh()) {
            c.setAutoCommit(false);
            int rows = 0;
            try (PreparedStatement s = c.prepareStatement("SELECT generate_series(1, ?)")) {
                s.setFetchSize(7);
                s.setInt(1, 1000);
                try (ResultSet r = s.executeQuery()) {
                    while (r.next()) {
                        rows++;
                        if (rows % 100 == 0) {
                            value(c, "SELECT 1");
                        }
                    }
                }
            }
            c.commit();
            return rows + "";
        }
    }

    static String cancel() throws Exception {
        try (Connection c = fresh(); Statement s = c.createStatement()) {
            new Timer(true).schedule(new TimerTask() {
                @Override public void run() {
                    try {
                        s.cancel();
                    } catch (SQLException e) {
                        throw new IllegalStateException(e);
                    }
                }
            }, 300);
            String cancelled = state(() -> s.execute("SELECT pg_sleep(20)"));
            s.setQueryTimeout(1);
            return cancelled + " " + state(() -> s.execute("SELECT pg_sleep(20)")) + " " + count(c);
        }
    }

    static String setting() throws Exception {
        try (Connection c = fresh("options", "-c work_mem=5MB")) {
            List<String> seen = new ArrayList<>(List.of(value(c, "SHOW work_mem")));
            run(c, "SET work_mem = '7MB'");
            seen.add(value(c, "SHOW work_mem"));
            c.setAutoCommit(false);
            run(c, "SET LOCAL work_mem = '9MB'");
            seen.add(value(c, "SHOW work_mem"));
            c.commit();
            c.setAutoCommit(true);
            seen.add(value(c, "SELECT set_config('TimeZone', ?, false)", "Asia/Tokyo"));
            seen.add(value(c, "SHOW work_mem"));
            run(c, "RESET work_mem");
            seen.add(value(c, "SHOW work_mem"));
            c.setSchema("pg_catalog");
            seen.add(c.getSchema());
            c.setClientInfo("ApplicationName", ENV.get("PGAPPNAME") + "!");
            seen.add("" + value(c, "SHOW application_name").endsWith("!"));
            run(c, "SET statement_timeout = 200");
            seen.add(state(() -> run(c, "SELECT pg_sleep(20)")));
            return String.join(" ", seen);
        }
    }

    static String notice() throws Exception {
        try (Connection c = fresh(); Statement s = c.createStatement()) {
            s.execute("DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two'; END $$");
            return s.getWarnings().getMessage() + " " + s.getWarnings().getNextWarning().getMessage();
        }
    }

    static String catalogue() throws Exception {
        try (Connection c = fresh()) {
            List<String> seen = new ArrayList<>();
            try (ResultSet r = c.getMetaData().getColumns(null, "public", "items", "%")) {
                while (r.next()) {
                    seen.add(r.getString("COLUMN_NAME") + r.getString("TYPE_NAME"));
                }
            }
            return seen.toString();
        }
    }

    static String large() throws Exception {
        try (Connection c = fresh(); Statement s = c.createStatement()) {
            int rows = 0;
            try (ResultSet r = s.executeQuery("SELECT n, md5(n::text) FROM generate_series(1, 100000) n")) {
                while (r.next()) {
                    rows++;
                }
            }
            return value(c, "SELECT repeat('x', 20000000)").length() + " "
                + value(c, "SELECT length(?)", "y".repeat(10_000_000)) + " " + rows;
        }
    }

    static String concurrent() throws Exception {
        try (Connection c = fresh()) {
            List<Connection> connections = new ArrayList<>();
            for (int n = 0; n < 8; n++) {
                connections.add(fresh());
            }
            List<Thread> threads = new ArrayList<>();
            for (int n = 0; n < 8; n++) {
                int own = n;
                Thread thread = new Thread(() -> {
                    try (Connection mine = connections.get(own)) {
                        for (int k = 0; k < 20; k++) {
                            run(mine, "INSERT INTO items (id) VALUES (" + (own * 100 + k) + ")");
                        }
                    } catch (SQLException e) {
                        System.err.println(e);
                    }
                });
                threads.add(thread);
                thread.start();
            }
            for (Thread thread : threads) {
                thread.join();
            }
            return value(c, "SELECT count(*) || ' ' || sum(id) FROM items");
        }
    }

    static String session_state() throws Exception {
        try (Connection c = fresh()) {
            run(c, "CREATE TEMP TABLE kept (n int)");
            return state(() -> run(c, "INSERT INTO kept VALUES (1)"));
        }
    }

    // With a holdable cursor PostgreSQL keeps what is not fetched yet past the transaction.
    static String hold() throws Exception {
        try (Connection c = fresh()) {
            run(c, "DECLARE kept CURSOR WITH HOLD FOR SELECT 1");
            return state(() -> run(c, "FETCH ALL FROM kept"));
        }
    }

    static String listen() throws Exception {
        try (Connection c = fresh(); Connection other = fresh()) {
            String listening = state(() -> run(c, "LISTEN cases"));
            run(other, "NOTIFY cases, 'hello'");
            var heard = c.unwrap(PGConnection.class).getNotifications(500);
            return listening + " " + (heard == null || heard.length == 0 ? "nothing" : heard[0].getParameter());
        }
    }

    static String tenant() throws Exception {
        try (Connection c = fresh()) {
            run(c, "INSERT INTO items (id) VALUES (1)");
            return owners(new ArrayList<>(List.of(value(c, "SELECT string_agg(owner, ' ') FROM items"))));
        }
    }

    static String token() throws Exception {
        try (Connection c = fresh()) {
            List<String> seen = new ArrayList<>(List.of(value(c, "SELECT owner()")));
            value(c, "SELECT set_config('pgtenant.token', ?, false)", ENV.get("CASES_TOKEN"));
            seen.add(value(c, "SELECT owner()"));
            run(c, "RESET pgtenant.token");
            seen.add(value(c, "SELECT owner()"));
            return owners(seen);
        }
    }

    public static void main(String[] arguments) {
        Map<String, Case> cases = new LinkedHashMap<>();
        cases.put("connect", Cases::connect);
        cases.put("encrypted", Cases::encrypted);
        cases.put("types", Cases::types);
        cases.put("prepared", Cases::prepared);
        cases.put("evicted", Cases::evicted);
        cases.put("transaction", Cases::transaction);
        cases.put("autosave", Cases::autosave);
        cases.put("error", Cases::error);
        cases.put("batch", Cases::batch);
        cases.put("pipeline", Cases::pipeline);
        cases.put("copy", Cases::copy);
        cases.put("cursor", Cases::cursor);
        cases.put("cancel", Cases::cancel);
        cases.put("setting", Cases::setting);
        cases.put("notice", Cases::notice);
        cases.put("catalogue", Cases::catalogue);
        cases.put("large", Cases::large);
        cases.put("concurrent", Cases::concurrent);
        cases.put("session_state", Cases::session_state);
        cases.put("hold", Cases::hold);
        cases.put("listen", Cases::listen);
        if (ENV.containsKey("CASES_TENANT")) {
            cases.put("tenant", Cases::tenant);
        }
        if (ENV.containsKey("CASES_TOKEN")) {
            cases.put("token", Cases::token);
        }
        System.out.printf("version\t0\tpgjdbc %s%n", org.postgresql.util.DriverInfo.DRIVER_VERSION);
        double until = Double.parseDouble(ENV.getOrDefault("CASES_UNTIL", "0"));
        do {
            cases.forEach((name, one) -> {
                long start = System.nanoTime();
                String outcome;
                try {
                    outcome = one.run();
                } catch (Exception e) {
                    outcome = e instanceof SQLException s ? s.getSQLState() + ": " + s.getMessage() : e.toString();
                }
                double took = (System.nanoTime() - start) / 1e9;
                System.out.printf(Locale.ROOT, "%s\t%.3f\t%s%n", name, took, outcome.replaceAll("\\s+", " "));
            });
        } while (System.currentTimeMillis() / 1e3 < until);
        System.exit(0);
    }
}
