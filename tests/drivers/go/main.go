// pgx: cases.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgx/v4"
	"github.com/jackc/pgx/v4/pgxpool"
)

const rows = 1000

// Set by the linker: Debian's package knows it.
var version = "4"

var (
	background = context.Background()
	tenantID   = os.Getenv("CASES_TENANT")
	otherID    = os.Getenv("CASES_OTHER")
	otherToken = os.Getenv("CASES_TOKEN")
	failing    = []string{"INSERT INTO items (id) VALUES (1)", "SELECT 1/0", "SELECT nowhere", "SELEC"}
)

// Cases fail by panic: every one has the same few steps that cannot go on without the last.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

func fresh(options string) *pgx.Conn {
	c, err := pgx.Connect(background, options)
	must(err)
	exec(c, "DELETE FROM items")
	return c
}

type querier interface {
	Exec(context.Context, string, ...interface{}) (pgconn.CommandTag, error)
	QueryRow(context.Context, string, ...interface{}) pgx.Row
}

func exec(c querier, text string, values ...interface{}) {
	_, err := c.Exec(background, text, values...)
	must(err)
}

func value(c querier, text string, values ...interface{}) (seen string) {
	// As text, whatever it is.
	must(c.QueryRow(background, text, values...).Scan(&seen))
	return seen
}

func count(c querier) string { return value(c, "SELECT count(*)::text FROM items") }

func state(err error) string {
	var said *pgconn.PgError
	switch {
	case err == nil:
		return "no error"
	case errors.As(err, &said):
		return said.Code
	default:
		return err.Error()
	}
}

func try(c querier, text string, values ...interface{}) string {
	_, err := c.Exec(background, text, values...)
	return state(err)
}

func owners(seen ...string) string {
	words := strings.ReplaceAll(strings.Join(seen, " "), tenantID, "own")
	if otherID == "" {
		return words
	}
	return strings.ReplaceAll(words, otherID, "other")
}

func connect() string {
	c := fresh("")
	defer c.Close(background)
	return fmt.Sprint(value(c, "SHOW application_name") == os.Getenv("PGAPPNAME"), c.PgConn().ParameterStatus("server_version"))
}

func encrypted() string {
	c := fresh("sslmode=verify-full sslrootcert=" + os.Getenv("CASES_ROOT"))
	defer c.Close(background)
	stream, _ := c.PgConn().Conn().(interface{ ConnectionState() tls.ConnectionState })
	return fmt.Sprint(stream.ConnectionState().HandshakeComplete, value(c, "SELECT length($1::text)::text", strings.Repeat("y", 1000000)))
}

func types() string {
	c := fresh("")
	defer c.Close(background)
	var i int
	var s string
	var missing *string
	var b bool
	var f float64
	var list []int32
	var blob []byte
	row := c.QueryRow(background, "SELECT $1::int, $2::text, $3::text, $4::bool, $5::float8, $6::int[], $7::bytea",
		1, "é", nil, true, 1.5, []int32{1, 2}, []byte{0, 255})
	must(row.Scan(&i, &s, &missing, &b, &f, &list, &blob))
	return fmt.Sprint(i, s, missing, b, f, list, blob)
}

func prepared() string {
	c := fresh("")
	defer c.Close(background)
	total := 0
	for n := 0; n < 20; n++ {
		var one int
		must(c.QueryRow(background, "SELECT $1::int + 1", n).Scan(&one))
		total += one
	}
	_, err := c.Prepare(background, "plus", "SELECT $1::text")
	must(err)
	named := value(c, "plus", "x")
	// pgx says it in SQL.
	gone := state(c.Deallocate(background, "plus"))
	_, err = c.Prepare(background, "plus", "SELECT $1::text || '!'")
	return fmt.Sprint(total, named, gone, state(err), " ", value(c, "plus", "x"))
}

// More than the cache of the connection holds: what is thrown out is deallocated.
func evicted() string {
	c := fresh("statement_cache_capacity=20")
	defer c.Close(background)
	total := 0
	for n := 0; n < 300; n++ {
		var one int
		must(c.QueryRow(background, fmt.Sprintf("SELECT $1::int + %d", n%60), 1).Scan(&one))
		total += one
	}
	return fmt.Sprint(total)
}

func transaction() string {
	c := fresh("")
	defer c.Close(background)
	outer, err := c.Begin(background)
	must(err)
	exec(outer, "INSERT INTO items (id) VALUES (1)")
	inner, err := outer.Begin(background)
	must(err)
	exec(inner, "INSERT INTO items (id) VALUES (2)")
	must(inner.Rollback(background))
	must(outer.Commit(background))
	serial, err := c.BeginTx(background, pgx.TxOptions{IsoLevel: pgx.Serializable, AccessMode: pgx.ReadOnly})
	must(err)
	level := value(serial, "SHOW transaction_isolation")
	refused := try(serial, "INSERT INTO items (id) VALUES (3)")
	next := try(serial, "SELECT 1")
	must(serial.Rollback(background))
	return fmt.Sprint(level, " ", refused, " ", next, " ", count(c))
}

func failure() string {
	c := fresh("")
	defer c.Close(background)
	exec(c, "INSERT INTO items (id) VALUES (1)")
	var states []string
	for _, text := range failing {
		states = append(states, try(c, text), try(c, text, pgx.QuerySimpleProtocol(true)))
	}
	return fmt.Sprint(states, count(c))
}

func batch() string {
	c := fresh("")
	defer c.Close(background)
	b := &pgx.Batch{}
	for n := 0; n < rows; n++ {
		b.Queue("INSERT INTO items (id, body) VALUES ($1, $2)", n, "b")
	}
	must(c.SendBatch(background, b).Close())
	return count(c)
}

// A batch is a pipeline.
func pipelineError() string {
	c := fresh("")
	defer c.Close(background)
	b := &pgx.Batch{}
	b.Queue("INSERT INTO items (id) VALUES ($1)", 1)
	b.Queue("INSERT INTO items (id) VALUES ($1)", 1)
	b.Queue("INSERT INTO items (id) VALUES ($1)", 2)
	failed := state(c.SendBatch(background, b).Close())
	several, err := c.PgConn().Exec(background, "SELECT 1; SELECT 1/0; SELECT 2").ReadAll()
	return fmt.Sprint(failed, " ", len(several), " ", state(err), " ", count(c))
}

func copying() string {
	c := fresh("")
	defer c.Close(background)
	exec(c, "DELETE FROM own_loads")
	source := pgx.CopyFromSlice(rows, func(n int) ([]interface{}, error) { return []interface{}{n, fmt.Sprint("row ", n)}, nil })
	in, err := c.CopyFrom(background, pgx.Identifier{"loads"}, []string{"id", "body"}, source)
	must(err)
	var out bytes.Buffer
	_, err = c.PgConn().CopyTo(background, &out, "COPY (SELECT id, body FROM own_loads) TO STDOUT")
	must(err)
	_, err = c.PgConn().CopyFrom(background, strings.NewReader("rubbish\n"), "COPY loads (id, body) FROM STDIN")
	return fmt.Sprint(in, out.Len(), " ", state(err), " ", value(c, "SELECT count(*)::text FROM own_loads"))
}

func cursor() string {
	c := fresh("")
	defer c.Close(background)
	tx, err := c.Begin(background)
	must(err)
	exec(tx, "DECLARE named SCROLL CURSOR FOR SELECT generate_series(1, 1000)::text")
	exec(tx, "MOVE 100 IN named")
	next := value(tx, "FETCH 1 FROM named")
	must(tx.Commit(background))
	return next
}

func cancel() string {
	c := fresh("")
	defer c.Close(background)
	go func() {
		time.Sleep(300 * time.Millisecond)
		_ = c.PgConn().CancelRequest(background)
	}()
	return fmt.Sprint(try(c, "SELECT pg_sleep(20)"), " ", count(c))
}

func setting() string {
	c := fresh("options='-c work_mem=5MB'")
	defer c.Close(background)
	seen := []string{value(c, "SHOW work_mem")}
	exec(c, "SET work_mem = '7MB'")
	seen = append(seen, value(c, "SHOW work_mem"))
	tx, err := c.Begin(background)
	must(err)
	exec(tx, "SET LOCAL work_mem = '9MB'")
	seen = append(seen, value(tx, "SHOW work_mem"))
	must(tx.Commit(background))
	seen = append(seen, value(c, "SELECT set_config('TimeZone', $1, false)", "Asia/Tokyo"), value(c, "SHOW work_mem"))
	exec(c, "RESET work_mem")
	exec(c, "SET statement_timeout = 200")
	return fmt.Sprint(append(seen, value(c, "SHOW work_mem"), try(c, "SELECT pg_sleep(20)")))
}

func notice() string {
	config, err := pgx.ParseConfig("")
	must(err)
	var heard []string
	config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { heard = append(heard, n.Message) }
	c, err := pgx.ConnectConfig(background, config)
	must(err)
	defer c.Close(background)
	exec(c, "DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two'; END $$")
	return fmt.Sprint(heard)
}

func large() string {
	c := fresh("")
	defer c.Close(background)
	size := len(value(c, "SELECT repeat('x', 20000000)"))
	echo := value(c, "SELECT length($1)::text", strings.Repeat("y", 10_000_000))
	all, err := c.Query(background, "SELECT n, md5(n::text) FROM generate_series(1, 100000) n")
	must(err)
	seen := 0
	for all.Next() {
		seen++
	}
	return fmt.Sprint(size, echo, " ", seen, all.Err())
}

func concurrent() string {
	c := fresh("")
	defer c.Close(background)
	pool, err := pgxpool.Connect(background, "pool_max_conns=8")
	must(err)
	defer pool.Close()
	var working sync.WaitGroup
	for n := 0; n < 160; n++ {
		working.Add(1)
		go func(n int) {
			defer working.Done()
			_, _ = pool.Exec(background, "INSERT INTO items (id) VALUES ($1)", n)
		}(n)
	}
	working.Wait()
	return count(c)
}

func sessionState() string {
	c := fresh("")
	defer c.Close(background)
	exec(c, "CREATE TEMP TABLE kept (n int)")
	return try(c, "INSERT INTO kept VALUES (1)")
}

func listen() string {
	c, other := fresh(""), fresh("")
	defer c.Close(background)
	defer other.Close(background)
	listening := try(c, "LISTEN cases")
	exec(other, "NOTIFY cases, 'hello'")
	soon, stop := context.WithTimeout(background, 500*time.Millisecond)
	defer stop()
	heard, err := c.WaitForNotification(soon)
	if err != nil {
		return listening + " nothing"
	}
	return listening + " " + heard.Payload
}

func tenant() string {
	c := fresh("")
	defer c.Close(background)
	exec(c, "INSERT INTO items (id) VALUES (1)")
	return owners(value(c, "SELECT string_agg(owner, ' ') FROM items"))
}

func token() string {
	c := fresh("")
	defer c.Close(background)
	seen := []string{value(c, "SELECT owner()")}
	value(c, "SELECT set_config('pgtenant.token', $1, false)", otherToken)
	seen = append(seen, value(c, "SELECT owner()"))
	exec(c, "RESET pgtenant.token")
	return owners(append(seen, value(c, "SELECT owner()"))...)
}

func attempt(one func() string) (outcome string) {
	defer func() {
		if reason := recover(); reason != nil {
			outcome = fmt.Sprint(reason)
		}
	}()
	return one()
}

func main() {
	cases := []struct {
		name string
		run  func() string
	}{
		{"connect", connect}, {"encrypted", encrypted}, {"types", types}, {"prepared", prepared}, {"evicted", evicted}, {"transaction", transaction},
		{"error", failure}, {"batch", batch}, {"pipeline_error", pipelineError}, {"copy", copying}, {"cursor", cursor},
		{"cancel", cancel}, {"setting", setting}, {"notice", notice}, {"large", large}, {"concurrent", concurrent},
		{"session_state", sessionState}, {"listen", listen}, {"tenant", tenant}, {"token", token},
	}
	fmt.Printf("version\t0\tpgx %s\n", version)
	until, _ := strconv.ParseFloat(os.Getenv("CASES_UNTIL"), 64)
	for {
		for _, one := range cases {
			if one.name == "tenant" && tenantID == "" || one.name == "token" && otherToken == "" {
				continue
			}
			start := time.Now()
			outcome := strings.Join(strings.Fields(attempt(one.run)), " ")
			fmt.Printf("%s\t%.3f\t%s\n", one.name, time.Since(start).Seconds(), outcome)
		}
		if float64(time.Now().UnixMilli())/1e3 >= until {
			return
		}
	}
}
