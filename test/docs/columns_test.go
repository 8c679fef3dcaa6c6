package docs_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/postgres"
)

var update = flag.Bool("update", false, "write the tables of columns anew from the database's comments")

// columnTable is a table of the page, between its markers, and the type or view that it describes.
var columnTable = regexp.MustCompile(`(?s)<!-- columns of (\w+) -->\n(.*?)<!-- end -->`)

const sqlPage = "docs/sql.md"

// The page says of every column what COMMENT ON says in the database: one source, checked here.
func TestColumnsOfTheSQLPage(t *testing.T) {
	db := connect(t, sharedServer(t), "")
	page := read(t, sqlPage)
	described := make(map[string]bool)
	written := columnTable.ReplaceAllStringFunc(page, func(block string) string {
		parts := columnTable.FindStringSubmatch(block)
		described[parts[1]] = true
		return fmt.Sprintf("<!-- columns of %s -->\n%s<!-- end -->", parts[1], columnsOf(t, db, parts[1]))
	})
	if *update {
		if err := os.WriteFile(filepath.Join(root, sqlPage), []byte(written), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if written != page {
		t.Error("the tables of columns differ from the database's comments; write them anew with: go test ./test/docs -run TestColumns -update")
	}
	for _, object := range surface(t, db) {
		if !described[object] {
			t.Errorf("%s is granted to tasker_reader and %s does not describe its columns", object, sqlPage)
		}
	}
}

// connect opens the database of a server, as its owner or as a role.
func connect(t *testing.T, s *server, role string) *pgx.Conn {
	t.Helper()
	info, err := postgres.Attach(t.Context(), s.dataDir)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), info.ConnString(postgres.Database))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) }) // The test may have broken it on purpose.
	if role != "" {
		if _, err := conn.Exec(t.Context(), "set role "+role); err != nil {
			t.Fatal(err)
		}
	}
	return conn
}

// surface is what the reader role may use, by the name of the view or of the function's row type. The pure functions that
// views call may be called too, and show nothing: the surface's own run with their owner's rights.
func surface(t *testing.T, db *pgx.Conn) []string {
	t.Helper()
	rows, err := db.Query(t.Context(), `
		select c.relname
		from pg_class c
		where c.relnamespace = 'public'::regnamespace and c.relkind = 'v' and has_table_privilege('tasker_reader', c.oid, 'select')
		union
		select r.typname
		from pg_proc p
		join pg_type r on r.oid = p.prorettype
		where p.pronamespace = 'public'::regnamespace and r.typtype = 'c' and p.prosecdef and has_function_privilege('tasker_reader', p.oid, 'execute')
		order by 1`)
	if err != nil {
		t.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if len(names) < 5 {
		t.Fatalf("the surface is only %v", names)
	}
	return names
}

// columnsOf is the table of an object's columns as the page shows it.
func columnsOf(t *testing.T, db *pgx.Conn, object string) string {
	t.Helper()
	rows, err := db.Query(t.Context(), `
		select a.attname::text, format_type(a.atttypid, a.atttypmod), coalesce(col_description(a.attrelid, a.attnum), '')
		from pg_attribute a
		where a.attrelid = to_regclass($1) and a.attnum > 0 and not a.attisdropped
		order by a.attnum`, object)
	if err != nil {
		t.Fatal(err)
	}
	type column struct{ Name, Type, Comment string }
	columns, err := pgx.CollectRows(rows, pgx.RowToStructByPos[column])
	if err != nil {
		t.Fatal(err)
	}
	if len(columns) == 0 {
		t.Fatalf("%s has no columns", object)
	}
	var out strings.Builder
	out.WriteString("| column | type | meaning |\n|---|---|---|\n")
	for _, column := range columns {
		if column.Comment == "" {
			t.Errorf("%s.%s has no comment", object, column.Name)
		}
		fmt.Fprintf(&out, "| `%s` | %s | %s |\n", column.Name, shortType(column.Type), strings.ReplaceAll(column.Comment, "|", `\|`))
	}
	return out.String()
}

func shortType(name string) string {
	if name == "timestamp with time zone" {
		return "timestamptz"
	}
	return name
}
