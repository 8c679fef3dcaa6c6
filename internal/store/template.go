package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/task"
)

// storedTemplate is a row of table template.
type storedTemplate struct {
	Name       string
	Version    string
	Prerelease bool
	Body       []byte
	Digest     []byte
	CreatedAt  time.Time
	CreatedBy  string
}

func (t storedTemplate) view(namespace string) task.TemplateView {
	return task.TemplateView{
		Namespace: namespace, Name: t.Name, Version: t.Version, Body: t.Body, CreatedAt: t.CreatedAt, CreatedBy: t.CreatedBy,
	}
}

// RegisterTemplate stores a template, unless an equal one stands. Without a version it compares with the latest and takes
// the next patch; with one, that version must be new or equal. Two that register at once take turns by the key.
func (s *Store) RegisterTemplate(ctx context.Context, namespaceID int32, t task.NewTemplate) (r task.Registered, err error) {
	err = s.retry(ctx, func() error {
		version := t.Version
		statement, args := "get_template", []any{namespaceID, t.Name, version}
		if version == "" {
			statement, args = "latest_template", args[:2]
		}
		standing, ok, err := s.findTemplate(ctx, statement, args...)
		switch {
		case err != nil:
			return err
		case ok && bytes.Equal(standing.Digest, t.Digest):
			r = task.Registered{Version: standing.Version, AlreadyRegistered: true, RegisteredAt: standing.CreatedAt}
			return nil
		case ok && version != "":
			return task.Refuse(task.TemplateVersionExists, "version %s of this template stands with another body", version).
				With("name", t.Name).With("version", version)
		case version == "" && ok:
			version = nextPatch(standing.Version)
		case version == "":
			version = "0.1.0"
		}
		order, prerelease, err := versionOrder(version)
		if err != nil {
			return task.Invalid("template.version", "%v", err)
		}
		r = task.Registered{Version: version}
		err = s.Cold.QueryRow(ctx, sqlText("insert_template"), namespaceID, t.Name, version, order, prerelease, t.Body, t.Digest, t.Actor, s.at()).
			Scan(&r.RegisteredAt)
		if errors.Is(err, pgx.ErrNoRows) {
			return errAgain // somebody else stored it first: compare with theirs
		}
		return err
	})
	return r, err
}

func (s *Store) findTemplate(ctx context.Context, statement string, args ...any) (t storedTemplate, ok bool, err error) {
	rows, err := s.Cold.Query(ctx, sqlText(statement), args...)
	if err != nil {
		return t, false, err
	}
	t, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[storedTemplate])
	if errors.Is(err, pgx.ErrNoRows) {
		return t, false, nil
	}
	return t, err == nil, err
}

// Template reads one version of a template, the latest for version "": the greatest release, or the greatest pre-release
// where there is no release. ok is false when there is none.
func (s *Store) Template(ctx context.Context, namespaceID int32, namespace, name, version string) (v task.TemplateView, ok bool, err error) {
	var t storedTemplate
	if version == "" {
		t, ok, err = s.findTemplate(ctx, "latest_template", namespaceID, name)
	} else {
		t, ok, err = s.findTemplate(ctx, "get_template", namespaceID, name, version)
	}
	return t.view(namespace), ok, err
}

// TemplateFilter finds templates. What is empty does not filter.
type TemplateFilter struct {
	Name       string
	LatestOnly bool
}

// TemplateKey is a place in a list of templates.
type TemplateKey struct {
	Name    string
	Version string
}

// Templates reads templates by name, each name's versions from the newest to the oldest, after a key.
func (s *Store) Templates(ctx context.Context, namespaceID int32, namespace string, f TemplateFilter, after TemplateKey, limit int) ([]task.TemplateView, error) {
	var order []string
	if after.Version != "" {
		var err error
		if order, _, err = versionOrder(after.Version); err != nil {
			return nil, task.Refuse(task.BadPageToken, "the page token is not one of this list")
		}
	}
	rows, err := s.Cold.Query(ctx, sqlText("list_templates"), namespaceID, after.Name, order, limit, orNil(f.Name), f.LatestOnly)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (task.TemplateView, error) {
		var (
			t        storedTemplate
			itsOrder []string
		)
		err := row.Scan(&t.Name, &t.Version, &itsOrder, &t.Prerelease, &t.Body, &t.Digest, &t.CreatedAt, &t.CreatedBy)
		return t.view(namespace), err
	})
}

// versionOrder makes the column that sorts, byte by byte and element by element, as semantic versions do: numbers by their
// length and then their digits, so that 0.10.0 follows 0.9.0; numeric pre-release identifiers before others; a version
// with more of them after one with fewer; a release after all its pre-releases.
func versionOrder(version string) (order []string, prerelease bool, err error) {
	core, pre, prerelease := strings.Cut(version, "-")
	numbers := strings.Split(core, ".")
	if len(numbers) != 3 {
		return nil, false, fmt.Errorf("%q is no semantic version", version)
	}
	for _, n := range numbers {
		if !isNumber(n) {
			return nil, false, fmt.Errorf("%q is no semantic version", version)
		}
		order = append(order, sortableNumber(n))
	}
	if !prerelease {
		return append(order, "2"), false, nil
	}
	for id := range strings.SplitSeq(pre, ".") {
		switch {
		case id == "" || strings.Trim(id, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-") != "":
			return nil, false, fmt.Errorf("%q is no semantic version", version)
		case strings.Trim(id, "0123456789") != "":
			order = append(order, "1"+id)
		case isNumber(id):
			order = append(order, "0"+sortableNumber(id))
		default:
			return nil, false, fmt.Errorf("%q is no semantic version: a number has no leading zero", version)
		}
	}
	return order, true, nil
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == "" && (s == "0" || s[0] != '0')
}

func sortableNumber(digits string) string { return fmt.Sprintf("%03d%s", len(digits), digits) }

// nextPatch is the release after a version: of a pre-release, the release it leads to.
func nextPatch(version string) string {
	core, _, prerelease := strings.Cut(version, "-")
	if prerelease {
		return core
	}
	at := strings.LastIndexByte(core, '.')
	n, _ := strconv.ParseInt(core[at+1:], 10, 64) // at most nine digits: the contract's bound
	return core[:at+1] + strconv.FormatInt(n+1, 10)
}
