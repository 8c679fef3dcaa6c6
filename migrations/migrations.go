// Package migrations holds the schema and brings a database up to it.
//
// Two kinds of file stand here, both embedded in the binary:
//
//   - NNN_name.sql are versioned migrations in tern's format. Each runs once, in order, in a transaction of its own
//     (unless the file says "---- tern: disable-tx ----"), and is counted in the table schema_version. They make what
//     cannot be replaced: tables, constraints, indexes, roles.
//   - code/*.sql is the repeatable code package: functions, views, grants, comments. All of it is executed in one
//     transaction, in file name order, whenever its digest differs from the one in schema_code. Every statement must
//     therefore bear repetition (create or replace, comment on, grant). Code files are plain SQL, not tern templates.
//
// Everything is created in the first existing schema of the connection's search_path, both version tables included, so
// one database may hold several shards, each in its own schema.
//
// A release that changes code/ must also add a numbered migration (a comment and "select;" will do). During a rolling
// release the previous binary then sees a newer database and leaves its functions alone.
//
// Two session locks serialize concurrent runs: use a direct connection, not a transaction pooler.
package migrations

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/tern/v2/migrate"
)

//go:embed *.sql code/*.sql
var embedded embed.FS

const (
	versionTable = "schema_version"
	codeTable    = "schema_code"
	codeDir      = "code"

	// upLock is the session advisory lock that Up holds from its first look to its last statement. tern takes its own
	// lock inside; this one covers the code package too, because two "create or replace function" of the same function
	// fail with "tuple concurrently updated".
	upLock = int64(0x7461736b65720001)
)

// ErrNoSchema says that no schema of the connection's search_path exists, so there is nowhere to put a table.
var ErrNoSchema = errors.New("no schema of the search_path exists; create one or set search_path")

// State tells how far a database is.
type State struct {
	// Current is the number of the last migration the database has, 0 for an empty one.
	Current int32
	// Latest is the number of the last migration this binary has.
	Latest int32
	// Pending are the file names that Up would run, in order; code/ stands last when the code package differs.
	Pending []string
}

// Newer says that the database was migrated by a later release. Later releases keep the schema usable for the one
// before, so this deserves a warning and no more.
func (s State) Newer() bool { return s.Current > s.Latest }

// Ready says that the database has every table this binary needs.
func (s State) Ready() bool { return s.Current >= s.Latest && len(s.Pending) == 0 }

// Up applies what is pending. Concurrent calls, from any number of processes, take turns. A database that is newer than
// this binary is left as it is, with a warning in the log.
func Up(ctx context.Context, conn *pgx.Conn) error { return up(ctx, conn, embedded) }

// Status compares the database with this binary and changes nothing. It needs SELECT on schema_version and schema_code.
func Status(ctx context.Context, conn *pgx.Conn) (State, error) {
	return status(ctx, conn, embedded)
}

// Hash is a digest of every embedded SQL file: equal hashes make equal schemas.
func Hash() string {
	digest, err := hash(embedded)
	if err != nil {
		panic(err) // An embedded file cannot fail to be read.
	}
	return digest
}

func up(ctx context.Context, conn *pgx.Conn, files fs.FS) (err error) {
	if _, err := conn.Exec(ctx, "select pg_advisory_lock($1)", upLock); err != nil {
		return fmt.Errorf("locking the schema: %w", err)
	}
	defer func() {
		// A closed connection has given up its lock already.
		if conn.IsClosed() {
			return
		}
		if _, unlockErr := conn.Exec(context.WithoutCancel(ctx), "select pg_advisory_unlock($1)", upLock); err == nil && unlockErr != nil {
			err = fmt.Errorf("unlocking the schema: %w", unlockErr)
		}
	}()

	before, err := status(ctx, conn, files)
	if err != nil {
		return err
	}
	if before.Newer() {
		slog.WarnContext(ctx, "database schema is newer than this binary; leaving it as it is",
			"database_version", before.Current, "binary_version", before.Latest)
		return nil
	}
	if before.Ready() {
		return nil
	}
	if err := upTables(ctx, conn, files); err != nil {
		return err
	}
	return upCode(ctx, conn, files, before.Latest)
}

// upTables runs the versioned migrations.
func upTables(ctx context.Context, conn *pgx.Conn, files fs.FS) error {
	schema, err := currentSchema(ctx, conn)
	if err != nil {
		return err
	}
	// tern says "reset all" after each migration. That also undoes a search_path set in the session by the caller, so it
	// is put back before the next migration and at the end.
	var searchPath string
	if err := conn.QueryRow(ctx, "select current_setting('search_path')").Scan(&searchPath); err != nil {
		return fmt.Errorf("reading search_path: %w", err)
	}
	restore := func() error {
		_, err := conn.Exec(ctx, "select set_config('search_path', $1, false)", searchPath)
		return err
	}

	migrator, err := migrate.NewMigrator(ctx, conn, schema+"."+versionTable)
	if err != nil {
		return fmt.Errorf("preparing %s.%s: %w", schema, versionTable, err)
	}
	tables, err := tablesOnly(files)
	if err != nil {
		return err
	}
	if err := migrator.LoadMigrations(tables); err != nil {
		return fmt.Errorf("loading migrations: %w", err)
	}
	var restoreErr error
	migrator.OnStart = func(int32, string, string, string) { restoreErr = errors.Join(restoreErr, restore()) }
	if err := migrator.Migrate(ctx); err != nil {
		return describe("", "", err)
	}
	if err := errors.Join(restoreErr, restore()); err != nil {
		return fmt.Errorf("restoring search_path: %w", err)
	}
	return nil
}

// upCode executes the code package in one transaction and records its digest.
func upCode(ctx context.Context, conn *pgx.Conn, files fs.FS, version int32) error {
	schema, err := currentSchema(ctx, conn)
	if err != nil {
		return err
	}
	names, digest, err := codeFiles(files)
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		// The table stands before the code runs, so that a grant on all tables in code/ covers it.
		create := fmt.Sprintf(`
			create table if not exists %[1]s.%[2]s (
			  hash         text not null,
			  version      int not null,
			  installed_at timestamptz not null default now()
			);
			comment on table %[1]s.%[2]s is 'One row: the digest of the code package (functions, views) that is installed.'`,
			schema, codeTable)
		if _, err := tx.Exec(ctx, create); err != nil {
			return fmt.Errorf("preparing %s: %w", codeTable, err)
		}
		for _, name := range names {
			body, err := fs.ReadFile(files, name)
			if err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, string(body)); err != nil {
				return describe(name, string(body), err)
			}
		}
		record := fmt.Sprintf(`
			with replaced as (delete from %[1]s.%[2]s)
			insert into %[1]s.%[2]s (hash, version) values ($1, $2)`, schema, codeTable)
		if _, err := tx.Exec(ctx, record, digest, version); err != nil {
			return fmt.Errorf("recording the code package: %w", err)
		}
		return nil
	})
}

func status(ctx context.Context, conn *pgx.Conn, files fs.FS) (State, error) {
	names, err := migrationFiles(files)
	if err != nil {
		return State{}, err
	}
	code, codeDigest, err := codeFiles(files)
	if err != nil {
		return State{}, err
	}
	schema, err := currentSchema(ctx, conn)
	if err != nil {
		return State{}, err
	}

	state := State{Latest: int32(len(names))} //nolint:gosec // a handful of files
	var hasVersion, hasCode bool
	err = conn.QueryRow(ctx, "select to_regclass($1) is not null, to_regclass($2) is not null",
		schema+"."+versionTable, schema+"."+codeTable).Scan(&hasVersion, &hasCode)
	if err != nil {
		return State{}, fmt.Errorf("looking for %s: %w", versionTable, err)
	}
	if hasVersion {
		if err := conn.QueryRow(ctx, "select version from "+schema+"."+versionTable).Scan(&state.Current); err != nil {
			return State{}, fmt.Errorf("reading %s: %w", versionTable, err)
		}
	}
	if state.Newer() {
		return state, nil
	}
	state.Pending = names[state.Current:]

	installed := ""
	if hasCode {
		err := conn.QueryRow(ctx, "select hash from "+schema+"."+codeTable).Scan(&installed)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return State{}, fmt.Errorf("reading %s: %w", codeTable, err)
		}
	}
	if len(code) > 0 && installed != codeDigest {
		state.Pending = append(state.Pending[:len(state.Pending):len(state.Pending)], codeDir+"/")
	}
	return state, nil
}

// currentSchema is where unqualified names are created. tern cannot quote a schema's name, so it must not need quotes.
func currentSchema(ctx context.Context, conn *pgx.Conn) (string, error) {
	var name, quoted *string
	if err := conn.QueryRow(ctx, "select current_schema(), quote_ident(current_schema())").Scan(&name, &quoted); err != nil {
		return "", fmt.Errorf("finding the schema: %w", err)
	}
	if name == nil {
		return "", ErrNoSchema
	}
	if *name != *quoted {
		return "", fmt.Errorf("schema %s: a name that needs quotes is not supported", *quoted)
	}
	return *name, nil
}

// migrationFiles are the versioned migrations in order, checked for gaps and doubles.
func migrationFiles(files fs.FS) ([]string, error) {
	names, err := migrate.FindMigrations(files)
	if err != nil {
		return nil, fmt.Errorf("finding migrations: %w", err)
	}
	return names, nil
}

// codeFiles are the files of the code package in order, and their digest.
func codeFiles(files fs.FS) (names []string, digest string, err error) {
	names, err = fs.Glob(files, codeDir+"/*.sql")
	if err != nil {
		return nil, "", err
	}
	digest, err = hashFiles(files, names)
	return names, digest, err
}

func hash(files fs.FS) (string, error) {
	tables, err := migrationFiles(files)
	if err != nil {
		return "", err
	}
	code, _, err := codeFiles(files)
	if err != nil {
		return "", err
	}
	return hashFiles(files, append(tables, code...))
}

func hashFiles(files fs.FS, names []string) (string, error) {
	sum := sha256.New()
	for _, name := range names {
		body, err := fs.ReadFile(files, name)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%s %d\n", name, len(body))
		sum.Write(body)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// tablesOnly hides the code package from tern, which would parse every file of a subdirectory as a template.
func tablesOnly(files fs.FS) (fs.FS, error) {
	names, err := migrationFiles(files)
	if err != nil {
		return nil, err
	}
	return flatFS{FS: files, names: names}, nil
}

type flatFS struct {
	fs.FS
	names []string
}

// ReadDir lists the root, which is all tern needs.
func (f flatFS) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(f.FS, name)
	if err != nil || name != "." {
		return entries, err
	}
	kept := make([]fs.DirEntry, 0, len(f.names))
	for _, entry := range entries {
		if !entry.IsDir() && path.Ext(entry.Name()) == ".sql" {
			kept = append(kept, entry)
		}
	}
	return kept, nil
}

// describe names the file and line that Postgres complains about.
func describe(name, sql string, err error) error {
	var failed migrate.MigrationPgError
	if errors.As(err, &failed) {
		name, sql = failed.MigrationName, failed.Sql
	}
	var pgErr *pgconn.PgError
	if name == "" || !errors.As(err, &pgErr) {
		return fmt.Errorf("migrating: %w", err)
	}
	if at := int(pgErr.Position); at > 0 && at <= len([]rune(sql)) {
		line := 1 + strings.Count(string([]rune(sql)[:at-1]), "\n")
		return fmt.Errorf("migration %s, line %d: %w", name, line, err)
	}
	return fmt.Errorf("migration %s: %w", name, err)
}
