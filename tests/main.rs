//! The promises cdrelay makes, each kept by one module, against real brokers. `tests/run` starts those and runs this.
//!
//! # Breaking the promise on purpose
//!
//! Each of these changes to the code was made once, and made the tests named fail (all of the library, except where a module here is
//! named). Whoever touches one of the places can do it again: a test that does not notice is no test.
//!
//! | change | fails, among others |
//! |---|---|
//! | records are not synced (`spool/writer.rs`, `write`) | `spool::tests::model::what_was_acknowledged_comes_back_after_any_crash`, `spool::tests::promises::a_failing_disk_costs_refusals_and_nothing_acknowledged` |
//! | a request is acknowledged, and then its records are synced (`publish`) | the same two |
//! | a new segment's name is not synced (`spool/log.rs`, `begin`) | the same two |
//! | a segment that failed is written to again (`fail`) | `spool::tests::promises::what_a_killed_process_left_unsynced_is_made_durable_before_it_counts`, and in some runs the model |
//! | an event is known as a duplicate before it is durable (`encode`) | `spool::tests::promises::after_a_failure_the_disk_is_left_in_peace_for_a_while`, and the model |
//! | the removal of a segment is not synced before the next (`spool/log.rs`, `remove`) | the model |
//! | a segment is removed before the cursors are durable | `spool::tests::keeping::a_segment_goes_when_the_last_sink_has_durably_passed_it`, and in some runs the model |
//! | a new cursor's name is not synced (`spool/cursor.rs`, `PositionFile::open`) | `spool::tests::keeping::the_position_of_a_new_sink_survives_a_power_cut` |
//! | the end of the acknowledged records is not noted (`spool/writer.rs`, `publish`) | `spool::tests::damage::a_flipped_bit_in_the_last_group_commit_costs_one_record_of_a_thousand`, `spool::tests::damage::a_missing_segment_is_told_wherever_it_was` |
//! | the offset below which segments were removed is not kept (`spool/maintenance.rs`, `remove`) | `spool::tests::damage::a_missing_segment_is_told_wherever_it_was` |
//! | symbolic links are followed (`spool/disk.rs`, `open_at`) | `spool::tests::deadline::symbolic_links_in_the_directory_are_not_followed` |
//! | a commit that failed teaches its names (`spool/writer.rs`, `fail`), a name passes to a second conversation, is never renewed, or outlives its window (`spool/index.rs`, `spool/window.rs`) | `spool::tests::conversations::the_same_events_get_the_same_conversations_whatever_happens` |
//! | names are not read from their files, or are not in the records (`spool/window.rs`, `load`; `spool/segment.rs`, `write_record`) | the same, and `spool::tests::conversations::a_cdr_finds_the_conversation_of_its_call_after_a_restart_and_the_removal_of_its_segment` |
//! | a missing CDR is stored beside its webhook, or a lost record counts as a CDR (`spool/writer.rs`, `spool/index.rs`) | `spool::tests::conversations::a_missing_cdr_is_stored_once_and_not_beside_its_webhook` |
//! | a deleted file takes acknowledged records (`spool/writer.rs`, `write`) | `spool::tests::deadline::a_segment_whose_name_is_deleted_takes_no_more_acknowledged_records` |
//! | a request stays in the queue of a hanging disk when its client goes (`spool/queue.rs`, `abandon`) | `spool::tests::deadline::a_client_that_goes_frees_its_memory_while_the_disk_hangs` |
//! | a read that the disk refuses is taken for damage (`spool/reader.rs`) | the model |
//! | several messages of a conversation are under way (`dispatch/gate.rs`, `enter`) | `dispatch::gate::tests::a_conversation_goes_one_by_one_and_others_pass`, `dispatch::tests::what_fails_is_tried_again_and_nothing_of_its_conversation_passes` |
//! | the cursor moves before the destination has acknowledged (`dispatch.rs`, `settle`) | `dispatch::tests::a_stop_leaves_nothing_open_below_what_was_sent`, and the one above |
//! | a failed message is not tried again (`dispatch/publish.rs`, `send`) | `dispatch::tests::what_fails_is_tried_again_and_nothing_of_its_conversation_passes` |
//! | a place that is away counts as the destination's fault (`dispatch/publish.rs`, `send`) | `dispatch::tests::places::thousands_of_events_for_missing_topics_hold_up_no_other_and_all_arrive_once_the_topics_exist` |
//! | messages for a missing place never become dead letters (`dispatch.rs`, `place_is_away`) | `dispatch::tests::places::events_for_a_missing_topic_become_dead_letters_after_max_age_and_those_for_a_partition_never` |
//! | the file of open records is not read (`dispatch/open_records.rs`) | `dispatch::tests::places::a_restart_delivers_none_of_the_settled_records_behind_a_parked_one_again` |
//! | the checksum of that file is not compared (`dispatch/open_records.rs`, `decode`) | `dispatch::open_records::tests::a_damaged_file_calls_no_open_record_settled` |
//! | large records are rendered on a thread of the runtime (`dispatch/publish.rs`, `render`) | `dispatch::tests::a_large_event_with_many_values_holds_up_no_other_task` |
//! | a partition without a leader counts as one that works (`sink/kafka/partition.rs`, `is_broken`) | `sink::kafka::partition::tests::a_partition_is_away_until_it_acknowledges_or_holds_nothing_and_has_a_leader` |
//! | a partition may hold all of librdkafka's queue (`sink/kafka/partition.rs`, `try_share`) | `sink::kafka::partition::tests::partitions_that_do_not_answer_leave_room_for_the_others` |
//! | a producer is not replaced after a fatal error (`sink/kafka/producer.rs`, `fatal_error`) | `sink::kafka::tests::a_fatal_error_rebuilds_the_producer_and_answers_for_every_message` |
//! | a refused timestamp is the message's fault (`sink/kafka.rs`, `classify`) | `sink::kafka::tests::an_error_that_may_pass_is_no_rejection` |
//! | every error of a stream is the message's fault (`sink/nats.rs`, `acknowledged`) | `sink::nats::tests::only_errors_that_no_operator_can_mend_reject_a_message` |
//! | a full subject (`discard_new_per_subject`) stops the stream (`sink/nats.rs`, `acknowledged`) | the same |
//! | a sink without any stream waits for ever (`sink/nats/stream.rs`, `no_stream`) | `sink::nats::stream::tests::a_failing_stream_stops_the_sink_only_where_it_is_the_only_one` |
//! | a stream with `no_ack` gets messages (`sink/nats/stream.rs`, `never_confirms`) | the same |
//! | a partition is never declared away (`sink/kafka/partition.rs`, `set_away`) | `kafka_places::a_topic_without_any_leader_makes_a_required_sink_unready` |
//! | partitions that a new topic does not have stay known (`sink/kafka/topics.rs`, `learn`) | `kafka_places::made_anew::one_with_fewer_partitions_gets_every_message` |
//! | librdkafka's log of failed connections is not read (`sink/kafka/status.rs`, `log`) | `kafka_faults::a_kafka_without_a_free_connection_is_named_and_gets_everything_once_there_is_one` |
//! | changed files of certificates and passwords are not noticed (`sink/kafka/supervisor.rs`, `fingerprint`) | `kafka_places::renewed_certificates_and_passwords_are_used_without_a_restart` |
//! | a producer that hangs is not replaced (`sink/kafka/partition.rs`, `watch`) | `kafka_places::made_anew::one_with_another_leader_gets_every_message` |
//! | a quota is not recognised (`sink/kafka/status.rs`, `is_throttled`) | `kafka_places::a_throttled_client_is_named_so_and_stays_ready` |
//! | messages are published although the reply inbox is denied (`sink/nats/connection.rs`, `take_complaint`) | `nats_sink::places::the_subscription_to_the_inbox_is_awaited_before_anything_is_published` |
//! | the stream is not asked for a message that was not answered for (`sink/nats/stream.rs`, `holds`) | `nats_sink::places::a_message_stored_without_an_answer_is_not_stored_again_behind_the_duplicate_window` |
//! | NATS is not connected to again for ever (`sink/nats/options.rs`) | `nats_faults::a_nats_server_in_lame_duck_mode_loses_nothing` |
//! | duplicates in JetStream are not told (`sink/message.rs`, `mark_duplicate`) | `nats_sink::a_message_that_the_stream_has_is_a_duplicate_and_one_with_an_id_of_its_own_is_stored_again` |
//! | a closed stdout is used (`sink/stdout.rs`, `new`) | `stdout::a_closed_stdout_is_refused_at_start` |
//! | a log line waits for stderr (`logging.rs`) | `logging::a_stderr_that_nobody_reads_stops_neither_webhooks_nor_probes_nor_sigterm` |
//! | a deleted directory is not noticed (`spool/disk.rs`, `exists`) | `damage::a_deleted_directory_refuses_webhooks_and_what_is_in_memory_and_open_files_is_delivered` |
//! | no open files are set aside (`ingress/config.rs`, `connections_within`) | `limits::connections::few_open_files_leave_enough_for_sinks_segments_and_probes` |
//! | a failed write to stdout counts as written (`sink/stdout.rs`, `write_all`) | `sink::stdout::tests::a_torn_line_stands_alone_and_its_retry_is_whole` |
//! | `replay --force` gives the message no id of its own (`dispatch/replay.rs`, `forced_id`) | `dispatch::replay::tests::a_forced_record_is_for_its_sink_and_has_an_id_of_its_own` |
//! | a timeout is taken for a refusal, Kafka (`classify`) | `sink::kafka::tests::a_timeout_says_nothing_about_the_message` |
//! | a timeout is taken for a refusal, NATS (`send`) | `nats_sink::a_server_that_falls_silent_times_out_and_is_used_again` |
//! | `ack = "delivered"` answers 200 whatever the sinks have (`ingress/delivery.rs`) | `delivered::while_kafka_is_down_the_answer_is_202_and_who_asks_again_learns_when_it_is_there` |
//! | it waits for the cursor instead of the record (`dispatch.rs`, `complete`) | `dispatch::tests::who_asks_learns_of_a_record_when_it_is_settled_whatever_the_cursor_says` |
//! | a stop does not wait for sinks that are down (`bridge.rs`, `sinks::drained`) | `drain::a_stop_with_time_to_drain_delivers_what_waits_for_a_broker_that_comes_back` |
//! | a drain ends before every sink has everything (`bridge/drain.rs`) | `drain::spools_left_by_a_scale_in_are_delivered_complete_and_in_order` |
//! | the preallocated segment is removed when a larger one cannot begin (`spool/log.rs`, `begin`) | `spool::tests::keeping::a_large_segment_that_cannot_begin_leaves_the_preallocated_one` |
//! | calls that have just ended are compared (`reconcile/run.rs`, `compare`) | `reconcile::background::young_calls_and_those_before_the_window_are_left_alone` |
//! | calls from before the window are added (`reconcile/run.rs`, `compare`) | `reconcile::faults::calls_outside_of_the_window_are_left_alone` |
//! | known calls are added (`reconcile/run.rs`, `knows`) | `reconcile::background::missing_calls_are_added_counted_and_logged_without_numbers`, `reconcile::india::calls_are_recognised_by_time_and_number` |
//! | calls of the same millisecond are one (`reconcile/call.rs`, `read`) | `reconcile::india::calls_are_recognised_by_time_and_number` |
//! | the platform is asked once (`reconcile/platform.rs`, `ATTEMPTS`), or without an end (`reconcile/run.rs`, `repeated`) | `reconcile::faults::what_passes_is_waited_for`, `reconcile::faults::paging_ends_whatever_the_platform_does` |
//! | a list that fails ends the run (`reconcile/run.rs`, `execute`), or calls wait for the last page (`take`) | `reconcile::faults::an_account_without_a_list_has_its_other_lists_compared`, `reconcile::faults::calls_found_before_a_list_breaks_off_are_stored_and_the_run_counts_as_failed` |
//! | secrets are printed (`config/effective.rs`, `is_hidden`) | `config::effective::tests::every_setting_is_shown_with_its_origin_and_no_secret_is` |
//! | every sink is replaced by each reload (`bridge/change.rs`, `between`) | `reload::load::a_hundred_reloads_fail_no_request_and_open_no_connection_of_a_sink_that_stays` |
//! | new sinks are not probed before they are used (`bridge/worker.rs`, `reach`) | `reload::refused::a_wrong_configuration_changes_nothing_and_every_error_names_file_and_key` |
//! | a sink with undelivered events is removed all the same (`bridge/reload.rs`, `settled`) | `reload::a_sink_with_undelivered_events_goes_only_if_it_is_named` |
//! | `log.level` is not taken up (`bridge.rs`, `change`) | `reload::routes_limits_and_levels_change_and_connections_stay_open` |
//! | TLS sessions outlive the authorities that they were verified by (`ingress/tls/files.rs`: one memory of sessions for all) | `tls::rotation::new_authorities_hold_for_sessions_too` |
//! | members with an empty value are left out of the identity whatever their name (`event/fields.rs`, `is_blank_documented`) | `event::tests::added_or_changed_content_is_another_event`, `field::requests_that_differ_in_anything_are_stored_each` |
//! | bytes that are not of the declared charset are replaced (`ingress/decode/form.rs`, `Charset::text`) | `field::a_form_is_decoded_by_its_charset`, `field::requests_that_differ_in_anything_are_stored_each` |
//! | a `#` in a query is not encoded (`server/target.rs`) | `field::a_number_sign_in_a_query_cuts_nothing_off` |
//! | a pipelined request behind a `#` is taken (`server/connections.rs`, `begin_request`) | `field::a_pipelined_request_that_may_be_cut_off_is_refused` |
//! | a body without a value hides the query (`ingress/decode.rs`, `says_nothing`) | `field::a_query_without_a_body_that_says_anything_is_one_event` |
//! | an object without members is an event (`ingress/decode.rs`, `object`) | `field::an_object_without_members_is_answered_with_200_and_stored_nowhere` |
//! | JSON behind a form field's name is cut off at an `&` (`ingress/decode/form.rs`, `unencoded_json`) | `field::unencoded_json_in_a_form_field_stays_complete_and_two_calls_stay_two` |
//! | JSON in place of a form field's name is a name | `ingress::decode::tests::json_may_stand_in_place_of_a_form_fields_name` |
//! | an envelope needs a `count` | `field::an_envelope_without_a_count_holds_its_events` |
//! | multipart bodies are not read | `field::the_parts_of_a_multipart_body_are_one_event` |
//! | an event of a form may have any size | `ingress::decode::tests::the_size_of_a_forms_event_is_bounded` |
//! | a character set in Content-Encoding is refused, or a body of an unknown coding is not kept | `limits::decompression::a_character_set_is_no_coding_and_a_body_of_an_unknown_coding_is_kept` |
//! | the text `null` is a value (`event/fields.rs`, `is_absent`) | `field::the_text_null_is_no_team_and_no_conversation` |
//! | malformed requests are not counted, or refused ones not logged | `limits::streams::malformed_and_refused_requests_are_counted_and_logged_once_in_a_while` |
//! | the query beside a body is not kept, or nested fields are not found | `field::templates_use_the_query_beside_the_body_and_nested_fields` |
//! | memory for a body is reserved when it is announced (`ingress/body.rs`, `read`) | `limits::connections::announced_bodies_shut_nobody_out` |
//! | no connection is closed for another one (`server/connections.rs`, `admit`) | `limits::connections::clients_that_keep_the_bridge_waiting_make_room_for_others` |
//! | headers of HTTP/2 streams need no memory (`server/http.rs`, `reserve`) | `limits::streams::headers_of_few_bytes_take_little_memory` |
//! | the query counts as signed by a signature over the body | `auth::a_signature_over_an_empty_body_lets_no_event_in_by_the_query` |
//! | a form that is JSON passes Twilio's check | `ingress::auth::tests::signatures::the_examples_of_twilio` |
//! | refused credentials are not logged (`ingress/routes.rs`, `denied`) | `auth::every_kind_lets_the_right_request_in_and_no_other` |
//! | networks of mapped IPv4 addresses hold no IPv4 client (`setting/network.rs`) | `setting::network::tests::a_network_of_ipv4_mapped_addresses_holds_ipv4_clients` |
//! | a byte order mark belongs to the first secret (`reloaded.rs`, `text`) | `ingress::auth::secrets::tests::a_changed_file_is_adopted_once_it_stays_the_same_and_a_bad_one_never` |
//! | a byte order mark hides a certificate, or one that the parser skips is left out (`ingress/tls/files.rs`) | `ingress::tls::tests::no_certificate_is_left_out_silently` |

mod analytics;
mod auth;
mod backlog;
mod bounds;
mod brokers;
mod chart;
mod clusters;
mod command_line;
mod conformance;
mod conversations;
mod damage;
mod dead_letters;
mod delivered;
mod delivery;
mod deploy;
mod drain;
mod examples;
mod explain;
mod faults;
mod field;
mod full_disk;
mod fuzz;
mod hanging_disk;
mod haproxy;
mod independence;
mod ingress;
mod kafka_faults;
mod kafka_places;
mod kafka_sink;
mod limits;
mod logging;
mod metrics;
mod monitoring;
mod nats_faults;
mod nats_sink;
mod openapi;
mod ordering;
mod outage;
mod probes;
mod proxy_protocol;
mod readme;
mod reconcile;
mod recovery;
mod redact;
mod reload;
mod replay;
mod routes;
mod routing;
mod schema;
mod schema_registry;
mod soak;
mod stdout;
mod stopping;
mod support;
mod tls;
