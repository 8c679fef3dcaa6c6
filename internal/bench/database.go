package bench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/postgres"
)

// databases are those of a run, of one Postgres: the floor's, and each stage's while it lasts. Their commits are counted
// apart.
type databases struct {
	floorURL string
	conn     *pgx.Conn // on the floor's
	own      *postgres.Server
	admin    string // where what was made can be dropped
	made     []string
}

// openDatabases makes the floor's database on the Postgres at the URL, or on a cluster of our own that goes away with us.
func openDatabases(ctx context.Context, w *world) (_ *databases, err error) {
	d := &databases{admin: w.DatabaseURL}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close(context.WithoutCancel(ctx)))
		}
	}()
	if d.admin == "" {
		// Durability as the server's own Postgres has it: nothing is switched off.
		d.own, err = postgres.Start(ctx, postgres.Config{DataDir: w.DataDir, Ephemeral: true, Logger: w.log})
		if err != nil {
			return nil, fmt.Errorf("starting PostgreSQL: %w", err)
		}
		d.admin = d.own.ConnString(postgres.Database)
	}
	if d.floorURL, err = d.create(ctx, "tasker_bench_"+strings.ToLower(rand.Text()[:8])+"_floor"); err != nil {
		return nil, err
	}
	return d, d.connect(ctx)
}

// connect opens the connection to the floor's database, anew if there was one.
func (d *databases) connect(ctx context.Context) (err error) {
	if d.conn != nil {
		_ = d.conn.Close(ctx)
	}
	if d.conn, err = pgx.Connect(ctx, d.floorURL); err != nil {
		return fmt.Errorf("connecting to the new database: %w", err)
	}
	return nil
}

// create makes a database with the settings of the one that the URL names, and gives its URL.
func (d *databases) create(ctx context.Context, name string) (string, error) {
	conn, err := pgx.Connect(ctx, d.admin)
	if err != nil {
		return "", fmt.Errorf("connecting: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "create database "+name+" template template0"); err != nil {
		return "", fmt.Errorf("making a database: %w", err)
	}
	d.made = append(d.made, name)
	rows, _ := conn.Query(ctx, `
		select unnest(setconfig) from pg_db_role_setting
		where setrole = 0 and setdatabase = (select oid from pg_database where datname = current_database())`)
	settings, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return "", fmt.Errorf("reading the database's settings: %w", err)
	}
	for _, setting := range settings {
		key, value, _ := strings.Cut(setting, "=")
		sql := fmt.Sprintf("alter database %s set %s = '%s'", name, pgx.Identifier{key}.Sanitize(), strings.ReplaceAll(value, "'", "''"))
		if _, err := conn.Exec(ctx, sql); err != nil {
			return "", fmt.Errorf("setting %s: %w", key, err)
		}
	}
	return databaseURL(d.admin, name)
}

// databaseURL is a connection string for another database of the same server.
func databaseURL(dsn, name string) (string, error) {
	if !strings.Contains(dsn, "://") {
		return dsn + " dbname=" + name, nil // of two, the last counts
	}
	u, err := url.Parse(dsn)
	if err != nil {
		return "", errors.New("the database URL cannot be read") // the error would repeat it, password and all
	}
	u.Path = "/" + name
	return u.String(), nil
}

func (d *databases) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if d.conn != nil {
		_ = d.conn.Close(ctx)
	}
	if d.own != nil {
		return d.own.Stop(ctx)
	}
	var err error
	for _, name := range slices.Clone(d.made) {
		err = errors.Join(err, d.drop(ctx, name))
	}
	return err
}

// drop drops a database that was made.
func (d *databases) drop(ctx context.Context, name string) error {
	at := slices.Index(d.made, name)
	if at < 0 {
		return nil
	}
	d.made = slices.Delete(d.made, at, at+1)
	conn, err := pgx.Connect(ctx, d.admin)
	if err != nil {
		return fmt.Errorf("dropping database %s: %w", name, err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "drop database "+name+" with (force)"); err != nil {
		return fmt.Errorf("dropping database %s: %w", name, err)
	}
	return nil
}
