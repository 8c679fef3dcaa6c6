package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/worker"
	"github.com/taskerhq/tasker/server"
)

// remote is what every client command is told about the server and about what to print: one set of flags, each also an
// environment variable, the flag winning.
type remote struct {
	cli       *cli
	address   string
	namespace string
	tls       bool
	caCert    string
	cert, key string // of the client, where the server asks for one
	timeout   time.Duration
	output    string
}

// remoteHelp ends the long help of client commands.
const remoteHelp = `

Exit status: 0 done, 1 failed or refused, 2 the command line cannot be understood.`

// newRemote puts the flags of client commands on cmd and those below it.
func (c *cli) newRemote(cmd *cobra.Command) *remote {
	r := &remote{cli: c}
	flags := cmd.PersistentFlags()
	flags.StringVar(&r.address, "address", server.DefaultAddress, "server as `HOST:PORT`; several, separated by commas, share the calls [$TASKER_ADDRESS]")
	flags.StringVar(&r.namespace, "namespace", "", "namespace to work in; empty is \"default\" [$TASKER_NAMESPACE]")
	flags.BoolVar(&r.tls, "tls", false, "encrypt the connection and check the server's certificate [$TASKER_TLS]")
	flags.StringVar(&r.caCert, "ca-cert", "", "`FILE` of the certificates to check the server's by, instead of the system's; implies --tls [$TASKER_CA_CERT]")
	flags.StringVar(&r.cert, "client-cert", "", "`FILE` of the certificate to show the server; implies --tls [$TASKER_CLIENT_CERT]")
	flags.StringVar(&r.key, "client-key", "", "`FILE` of that certificate's private key [$TASKER_CLIENT_KEY]")
	flags.DurationVar(&r.timeout, "timeout", 30*time.Second, "longest wait for the answer to one call [$TASKER_TIMEOUT]")
	flags.StringVarP(&r.output, "output", "o", "table", "print a `FORMAT`: table, json or yaml (the answer as it came) [$TASKER_OUTPUT]")
	// The error says only that the flag is unknown or has its completion already.
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	if cmd.Long == "" {
		cmd.Long = cmd.Short + "."
	}
	cmd.Long += remoteHelp
	return r
}

// resolve fills in from the environment what no flag says, and checks what can be checked here.
func (r *remote) resolve(cmd *cobra.Command) error {
	for name, variable := range map[string]string{
		"address": "TASKER_ADDRESS", "namespace": "TASKER_NAMESPACE", "tls": "TASKER_TLS",
		"ca-cert": "TASKER_CA_CERT", "client-cert": "TASKER_CLIENT_CERT", "client-key": "TASKER_CLIENT_KEY", "timeout": "TASKER_TIMEOUT", "output": "TASKER_OUTPUT",
	} {
		value := r.cli.getenv(variable)
		if flag := cmd.Flag(name); value != "" && !flag.Changed {
			if err := flag.Value.Set(value); err != nil {
				return usageError("$%s: %v", variable, err)
			}
		}
	}
	if r.output != "table" && r.output != "json" && r.output != "yaml" {
		return usageError("-o %s: must be table, json or yaml", r.output)
	}
	if (r.cert == "") != (r.key == "") {
		return usageError("--client-cert and --client-key go together")
	}
	return nil
}

// dial makes the connection. It is opened when the first call needs it.
func (r *remote) dial() (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if r.tls || r.caCert != "" || r.cert != "" {
		config := &tls.Config{MinVersion: tls.VersionTLS12}
		if r.caCert != "" {
			pem, err := os.ReadFile(r.caCert)
			if err != nil {
				return nil, fmt.Errorf("reading --ca-cert: %w", err)
			}
			config.RootCAs = x509.NewCertPool()
			if !config.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("reading --ca-cert: no certificate in %s", r.caCert)
			}
		}
		if r.cert != "" {
			pair, err := tls.LoadX509KeyPair(r.cert, r.key)
			if err != nil {
				return nil, fmt.Errorf("reading --client-cert: %w", err)
			}
			config.Certificates = []tls.Certificate{pair}
		}
		creds = credentials.NewTLS(config)
	}
	return worker.Dial(r.address, creds, grpc.WithUserAgent("tasker-cli/"+version))
}

// session is one command's use of a server.
type session struct {
	*remote
	*printer
	conn      *grpc.ClientConn
	tasks     taskerv1.TaskServiceClient
	steps     taskerv1.StepServiceClient
	workers   taskerv1.WorkerServiceClient
	templates taskerv1.TemplateServiceClient
	circuits  taskerv1.CircuitServiceClient
}

// run makes a command's RunE of what it does with a session.
func (r *remote) run(do func(ctx context.Context, s *session, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := r.resolve(cmd); err != nil {
			return err
		}
		conn, err := r.dial()
		if err != nil {
			return err
		}
		s := &session{
			remote:    r,
			printer:   newPrinter(r.cli, r.output),
			conn:      conn,
			tasks:     taskerv1.NewTaskServiceClient(conn),
			steps:     taskerv1.NewStepServiceClient(conn),
			workers:   taskerv1.NewWorkerServiceClient(conn),
			templates: taskerv1.NewTemplateServiceClient(conn),
			circuits:  taskerv1.NewCircuitServiceClient(conn),
		}
		err = r.explain(do(cmd.Context(), s, args))
		return errors.Join(err, conn.Close())
	}
}

// call bounds one unary call.
func (r *remote) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, r.timeout)
}

// ask makes one unary call and returns its answer.
func ask[Q, A any](ctx context.Context, r *remote, rpc func(context.Context, Q, ...grpc.CallOption) (A, error), request Q) (A, error) {
	ctx, cancel := r.call(ctx)
	defer cancel()
	return rpc(ctx, request)
}

// usageError says what is wrong with the command line.
func usageError(format string, args ...any) error {
	return &exitError{code: exitUsage, err: fmt.Errorf(format, args...)}
}

// exactly takes that many arguments, by these names.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usageError("%s: %s is missing\nusage: %s", cmd.CommandPath(), names[len(args)], cmd.UseLine())
		case len(args) > len(names):
			return usageError("%s: unexpected argument %q\nusage: %s", cmd.CommandPath(), args[len(names)], cmd.UseLine())
		}
		return nil
	}
}

// idArg takes one argument, the id of a task or step.
func idArg(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := exactly(name)(cmd, args); err != nil {
			return err
		}
		if id, err := strconv.ParseInt(args[0], 10, 64); err != nil || id <= 0 {
			return usageError("%s: %q is not an id: ids are decimal numbers", name, args[0])
		}
		return nil
	}
}

// group makes a command that only holds others.
func group(use, short string) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError("%s has no command %q; see %s --help", cmd.CommandPath(), args[0], cmd.CommandPath())
			}
			return cmd.Help()
		},
	}
}
