package server

import (
	"context"
	"log/slog"

	"github.com/taskerhq/tasker/migrations"
)

// Migrate brings the database up to this release.
func Migrate(ctx context.Context, c Config, log *slog.Logger) (state migrations.State, err error) {
	return onSchema(ctx, c, log, true)
}

// SchemaStatus tells how far the database is, and changes nothing.
func SchemaStatus(ctx context.Context, c Config, log *slog.Logger) (state migrations.State, err error) {
	return onSchema(ctx, c, log, false)
}

func onSchema(ctx context.Context, c Config, log *slog.Logger, up bool) (state migrations.State, err error) {
	db, err := openDatabase(ctx, &c, log)
	if err != nil {
		return state, err
	}
	defer db.close(context.WithoutCancel(ctx))
	conn, err := db.connect(ctx, "tasker migrate")
	if err != nil {
		return state, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if up {
		if err := migrations.Up(ctx, conn); err != nil {
			return state, err
		}
	}
	return migrations.Status(ctx, conn)
}
